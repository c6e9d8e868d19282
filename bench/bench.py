#!/usr/bin/python3
"""Sluice and its peers side by side in one run, the cost as work grows, and points that want time
or space.

    bench/bench.py [--rows NAME,...] [--servers NAME,...] [--growth NAME,...] [--points NAME,...]
                   [--rounds N] [--patience SECONDS] [--report]

Each list may be "all" or "none". QUICK=1 in the environment makes everything small, for a first
look. Only ratios from one run count: the load generator shares the machine's cores, and disks are
noisy. Results go to bench/results/*.json; --report makes docs/performance.md's table and plots of
them. The exit status is 1 when something could not be measured or a point does not
hold, not when a goal is missed.
"""

import argparse
import datetime
import functools
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "Tests/Support"))

import goals  # noqa: E402
import growth  # noqa: E402
import measure  # noqa: E402
import meter  # noqa: E402
import points  # noqa: E402
import report  # noqa: E402
import rows as table  # noqa: E402
import servers  # noqa: E402

QUICK = os.environ.get("QUICK", "") not in ("", "0")
QUICK_SERVERS = "sluice,sluice-small-log,raw,qcow2,overlay,nbdkit-null,sluice-null,bare"
SIZES = table.QUICK if QUICK else table.FULL


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="quick" if QUICK else "all",
                        help="rows of the table, or none")
    parser.add_argument("--servers", default=QUICK_SERVERS if QUICK else "all")
    parser.add_argument("--growth", default="disks,log" if QUICK else "all",
                        help="parts of the cost as work grows, or none")
    parser.add_argument("--points", default="with-peers",
                        help="timed points; the default is those beside peers")
    parser.add_argument("--rounds", type=int, default=1 if QUICK else 3)
    parser.add_argument("--patience", type=float, default=0 if QUICK else 900,
                        help="seconds for measuring rows again that the hypervisor disturbed")
    parser.add_argument("--report", action="store_true",
                        help="write the table and the plots of docs/performance.md")
    return parser.parse_args()


def chosen(text, known):
    if text in ("all", "none"):
        return list(known) if text == "all" else []
    wanted = text.split(",")
    for name in wanted:
        if name not in known:
            sys.exit(f"“{name}” is unknown; there are {', '.join(known)}")
    return wanted


def chosen_points(text):
    if text == "with-peers":
        return list(points.QUICK_WITH_PEERS if QUICK else points.WITH_PEERS)
    return chosen(text, points.ALL)


def chosen_rows(text):
    known = {row.name: row for row in table.rows(SIZES)}
    if text == "quick":
        return [row for row in known.values() if row.quick]
    return [known[name] for name in chosen(text, known)]


def machine():
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True,
                            capture_output=True).stdout.strip()
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo")
                  if line.startswith("model name")), "")
    return {"commit": commit, "kernel": platform.release(), "cores": os.cpu_count(), "cpu": model,
            "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def compare(directory, rows, names, rounds, patience):
    """Every row on every side, one after the other; [{row's figures and goals}], peak memory."""
    results, memory, errors = [], {}, []
    # A stage is what runs on the same servers. Write amplification wants the space of all others.
    stages = dict.fromkeys((row.device, row.kind == "amplification") for row in rows)
    for device, alone in stages:
        members = [row for row in rows
                   if (row.device, row.kind == "amplification") == (device, alone)]
        devices = measure.DEVICES[device](directory)
        try:
            stage = measure.Stage(directory, members, names, SIZES, devices)
            try:
                series = measure_rounds(
                    stage, members, names, 1 if alone else rounds, patience, errors)
                for name, peak in stage.peaks().items():
                    memory[name] = max(memory.get(name, 0), peak)
            finally:
                stage.close()
        finally:
            devices.close()
        results += [result_of(row, series[row.name]) for row in members]
    return results, memory, errors


def measure_rounds(stage, rows, names, rounds, patience, errors):
    series = {row.name: {} for row in rows}
    for turn in range(rounds):
        for row in rows:
            figures = patience.least_disturbed(
                functools.partial(measure_round, stage, row, names, turn, errors))
            for label, each in figures.items():
                series[row.name].setdefault(label, []).append(each)
            show_round(row, series[row.name], turn)
    return series


def measure_round(stage, row, names, turn, errors):
    """{label: figures} of each side of a row, in turn."""
    found = {}
    sides = [(label, side) for label, side in row.sides.items() if side.server in names]
    for label, side in sides if turn % 2 == 0 else reversed(sides):
        try:
            found[label] = stage.measure(row, side)
        except Exception as error:  # noqa: BLE001  # the others' figures are still good
            errors.append(f"{row.name}, {label}: {str(error)[:2000]}")
            print(f"  FAILED {errors[-1]}", flush=True)
    return found


def show_round(row, by_label, turn):
    texts = [f"{label} {report.number(series[-1]['value'])}"
             for label, series in by_label.items()]
    print(f"  round {turn + 1}  {row.title}: {', '.join(texts)} {report.UNITS[row.unit]}",
          flush=True)


def result_of(row, series):
    medians = {label: measure.medians(figures) for label, figures in series.items()}
    return {"name": row.name, "title": row.title, "unit": row.unit, "how": row.how,
            "kind": row.kind, "device": row.device, "ours": row.ours, "medians": medians,
            "goals": [goals.judge(goal, medians) for goal in row.goals],
            "rounds": series}


def run_points(directory, names):
    results = {}
    for name in names:
        print(f"point {name}: {points.ALL[name].__doc__.splitlines()[0]}", flush=True)
        try:
            results[name] = points.ALL[name](directory, QUICK)
        except Exception as error:  # noqa: BLE001  # one point's failure is its result
            results[name] = {"holds": False, "error": str(error)[:2000]}
        shown = {key: value for key, value in results[name].items()
                 if key not in ("series", "what")}
        print(f"  {'holds' if results[name]['holds'] else 'DOES NOT HOLD'}: {shown}", flush=True)
    return results


def run_growth(directory, names, memory, errors):
    results = {}
    for name in names:
        print(f"growth {name}: {growth.ALL[name].__doc__.splitlines()[0]}", flush=True)
        try:
            results[name] = growth.ALL[name](directory, QUICK)
        except Exception as error:  # noqa: BLE001  # the others' figures are still good
            errors.append(f"{name}: {str(error)[:2000]}")
            print(f"  FAILED {errors[-1]}", flush=True)
            continue
        for line in report.growth_lines(results[name]):
            print(f"  {line}", flush=True)
        memory[f"sluice, growth: {name}"] = results[name]["peak"]
    return results


def save(result):
    results = ROOT / "bench/results"
    results.mkdir(exist_ok=True)
    stamp = result["machine"]["date"].replace(":", "").replace("+0000", "Z")
    path = results / f"{stamp}{'-quick' if QUICK else ''}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def main():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    wanted = options()
    names = [name for name in chosen(wanted.servers, servers.ALL) if servers.exist(name)]
    rows = chosen_rows(wanted.rows)
    growth_names = chosen(wanted.growth, growth.ALL)
    point_names = chosen_points(wanted.points)
    parent = ROOT / "bench/tmp"
    parent.mkdir(exist_ok=True)
    result = {"machine": machine(), "quick": QUICK, "rounds": wanted.rounds}
    began = time.monotonic()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="b", dir=parent))
    try:
        result["rows"], memory, errors = compare(
            directory, rows, names, wanted.rounds, meter.Patience(wanted.patience))
        compared = round(time.monotonic() - began)
        result["growth"] = run_growth(directory, growth_names, memory, errors)
        result["peak_memory"], result["errors"] = memory, errors
        grown = round(time.monotonic() - began)
        result["points"] = run_points(directory, point_names)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    result["seconds"] = round(time.monotonic() - began)
    result["parts"] = {"rows": compared, "growth": grown - compared,
                       "points": result["seconds"] - grown}
    print("\n" + "\n".join(report.table(result)))
    path = save(result)
    if wanted.report:
        report.write(result, ROOT / "docs")
    print(f"\nwritten: {path.relative_to(ROOT)}, after {result['seconds']} s, of them "
          f"{', '.join(f'{name} {spent}' for name, spent in result['parts'].items())}")
    for error in result["errors"]:
        print(f"FAILED {error}")
    # A point with goals is like a row: it fails when it could not be measured.
    holds = all(point["holds"] or "goals" in point for point in result["points"].values())
    return 0 if holds and not result["errors"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
