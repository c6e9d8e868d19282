#!/usr/bin/python3
"""Sluice and its peers side by side in one run, and the points that want time or space.

    bench/bench.py [--rows NAME,...] [--servers NAME,...] [--points NAME,...] [--rounds N]

QUICK=1 in the environment makes everything small, for a first look. Only ratios from one run
count: the load generator shares the machine's cores, and disks are noisy. Results go to
bench/results/*.json. The exit status is 1 when a point does not hold.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "Tests/Support"))

import loads  # noqa: E402
import points  # noqa: E402
import servers  # noqa: E402

QUICK = os.environ.get("QUICK", "") not in ("", "0")
# The blender's 16, and one more for the rest.
DISKS = 17


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="all", help="rows of the table, or none")
    parser.add_argument("--servers", default="sluice,raw" if QUICK else "sluice,raw,qcow2")
    parser.add_argument("--points", default="all", help="timed points, or none")
    parser.add_argument("--rounds", type=int, default=1 if QUICK else 2)
    return parser.parse_args()


def chosen(text, known):
    if text in ("all", "none"):
        return list(known) if text == "all" else []
    wanted = text.split(",")
    for name in wanted:
        if name not in known:
            sys.exit(f"“{name}” is unknown; there are {', '.join(known)}")
    return wanted


def machine():
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True,
                            capture_output=True).stdout.strip()
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo")
                  if line.startswith("model name")), "")
    return {"commit": commit, "kernel": platform.release(), "cores": os.cpu_count(), "cpu": model,
            "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def compare(directory, rows, names, rounds):
    """Every row on every server, one after the other, in alternating order; all the figures."""
    size, runtime = ("512m", 2) if QUICK else ("4g", 4)
    table = [row for row in loads.rows(size, runtime) if row.name in rows]
    figures = {row.name: {name: [] for name in names} for row in table}
    memory = {}
    for turn in range(rounds):
        running = {name: servers.ALL[name](directory, DISKS, 16 * loads.GIB) for name in names}
        try:
            for server in running.values():
                server.freeze()
            for row in table:
                order = list(names) if turn % 2 == 0 else list(reversed(names))
                for name in order:
                    server = running[name]
                    server.thaw()
                    figures[row.name][name].append(loads.measure(server, row))
                    server.freeze()
                show_row(row, figures[row.name], turn)
            for name, server in running.items():
                memory[name] = max(memory.get(name, 0), server.peak_memory())
        finally:
            for server in running.values():
                server.remove()
    return table, figures, memory


def show_row(row, by_server, turn):
    texts = [f"{name} {series[turn]['value']:,.0f}" for name, series in by_server.items()]
    print(f"  round {turn + 1}  {row.title}: {', '.join(texts)} {row.unit}", flush=True)


def print_table(table, figures, names):
    """Medians, what Sluice makes of each peer's, latency and processor time."""
    peers = [name for name in names if name != "sluice"]
    heads = ["work", "unit", *names]
    if "sluice" in names:
        heads += [f"sluice/{peer}" for peer in peers] + ["p50/p99 µs", "CPU %"]
    print("\n| " + " | ".join(heads) + " |")
    print("|" + " --- |" * len(heads))
    for row in table:
        median = {name: statistics.median(f["value"] for f in figures[row.name][name])
                  for name in names}
        cells = [row.title, row.unit, *(f"{median[name]:,.0f}" for name in names)]
        if "sluice" in names:
            cells += [f"{median['sluice'] / median[peer]:.2f}" if median[peer] else "-"
                      for peer in peers]
            last = figures[row.name]["sluice"][-1]
            cells += [f"{last['p50_us']} / {last['p99_us']}", str(last["cpu_percent"])]
        print("| " + " | ".join(cells) + " |")
    print()


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


def main():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    wanted = options()
    names = chosen(wanted.servers, servers.ALL)
    rows = chosen(wanted.rows, [row.name for row in loads.rows("1g", 1)])
    point_names = chosen(wanted.points, points.ALL)
    parent = ROOT / "bench/tmp"
    parent.mkdir(exist_ok=True)
    result = {"machine": machine(), "quick": QUICK}
    directory = pathlib.Path(tempfile.mkdtemp(prefix="b", dir=parent))
    try:
        if rows:
            table, figures, memory = compare(directory, rows, names, wanted.rounds)
            print_table(table, figures, names)
            result["rows"], result["peak_memory"] = figures, memory
        result["points"] = run_points(directory, point_names)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    results = ROOT / "bench/results"
    results.mkdir(exist_ok=True)
    stamp = result["machine"]["date"].replace(":", "").replace("+0000", "Z")
    path = results / f"{stamp}{'-quick' if QUICK else ''}.json"
    path.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(f"written: {path.relative_to(ROOT)}")
    return 0 if all(point["holds"] for point in result["points"].values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
