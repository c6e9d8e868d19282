#!/usr/bin/python3
"""The table and the plots of a run, from its results.

    bench/report.py RESULTS.json...

Of several runs, oldest first, each part is that of the last one that measured it; the page says which.
It prints the table; writes the plots to docs/performance/*.svg and the tables between the markers of
docs/performance.md, so that nobody copies figures by hand. gnuplot draws.
"""

import json
import pathlib
import sys

import plots

UNITS = {"iops": "IOPS", "mb_s": "MB/s", "written_ratio": ""}
SIGNS = {">=": "≥", "<=": "≤"}


def number(value):
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def verdict(goal):
    return {True: "met", False: "**short**", None: "not measured"}[goal["met"]]


def goal_cells(goal):
    """What a goal is, what came out, and whether it is met."""
    unit = " µs" if goal["kind"] == "added" else ""
    figure = "–" if goal["figure"] is None else f"{goal['figure']:,.2f}{unit}"
    text = goal["text"]
    if goal["of"] not in ("sluice",):
        text = f"{goal['of']}: {text}"
    return text, figure, verdict(goal)


def latency(figures):
    text = f"{number(figures.get('p50_us'))} / {number(figures.get('p99_us'))}"
    if figures.get("flush_p50_us"):
        text += f" + {number(figures['flush_p50_us'])} / {number(figures['flush_p99_us'])}"
    return text


def table(result):
    """The lines of the main table: one for each row and contender, then the goals."""
    return [*contenders(result), "", *goal_table(result), "", *memory_table(result)]


def contenders(result):
    lines = ["| work | server | figure | Sluice / it | p50 / p99 µs (+ flush) | "
             "CPU µs an operation (the server's processes) |", "| --- | --- | --- | --- | --- | --- |"]
    for row in result["rows"]:
        ours = row["medians"].get(row["ours"], {}).get("value")
        title = row["title"]
        for label, figures in row["medians"].items():
            value = figures["value"]
            ratio = f"{ours / value:.2f}" if ours and value and label != row["ours"] else ""
            cpu = f"{number(figures['cpu_us'])} ({number(figures['own_us'])})" \
                if "cpu_us" in figures else f"({number(figures.get('own_us'))})"
            lines.append(f"| {title} | {label} | {number(value)} {UNITS[row['unit']]} | {ratio} | "
                         f"{latency(figures)} | {cpu} |")
            title = ""
    return lines + compared_points(result)


def compared_points(result):
    """Points that have figures of several servers or cases, in the same columns."""
    lines = []
    for name, point in result.get("points", {}).items():
        title = f"{name}: {point.get('what', '')}"
        for label, figure, ratio, cpu in figures_of(point):
            lines.append(f"| {title} | {label} | {figure} | {ratio or ''} | | {cpu} |")
            title = ""
    return lines


def figures_of(point):
    """(server or case, figure, Sluice's ratio to it, processor time) of one point."""
    if "sluice" in point.get("iops", ()):
        for server, value in point["iops"].items():
            yield server, f"{number(value)} IOPS", point["ratio"].get(server), ""
        if point.get("bare_durable_iops"):
            yield ("16 bare durable writers", f"{number(point['bare_durable_iops'])} IOPS",
                   point["to_bare"], "")
    elif "fresh" in point.get("mb_s", ()):
        for case, value in point["mb_s"].items():
            share = value / point["mb_s"]["fresh"]
            yield case, f"{number(value)} MB/s, {share:.2f} × fresh", None, ""
    elif all("iops" in point.get(who, ()) for who in ("sluice", "raw")):
        for server in ("sluice", "raw"):
            ratio = point["ratio"] if server == "raw" else None
            yield server, f"{number(point[server]['iops'])} IOPS", ratio, ""
    for trace, one in point.items():
        if not isinstance(one, dict) or "trace" not in one:
            continue
        for server, ratio in {"sluice": None, **one["ratio"]}.items():
            figures = one[server]
            yield (f"{trace}, {server}", f"{figures['seconds']:.2f} s", ratio,
                   f"({figures['cpu_seconds']:.2f} s)")


def goal_table(result):
    lines = ["| work | goal | measured | |", "| --- | --- | --- | --- |"]
    for row in result["rows"]:
        title = row["title"]
        for goal in row["goals"]:
            lines.append(f"| {title} | " + " | ".join(goal_cells(goal)) + " |")
            title = ""
        lines += [f"| | {note} | | |" for note in notes(row)]
    for name, point in result.get("points", {}).items():
        title = f"{name}: {point.get('what', point.get('error', ''))}"
        for goal in point.get("goals", []):
            lines.append(f"| {title} | " + " | ".join(goal_cells(goal)) + " |")
            title = ""
        if point.get("stolen_percent", 0) > QUIET:
            lines.append(f"| | the hypervisor took up to {point['stolen_percent']:.0f}% of the "
                         "machine meanwhile: doubtful | | |")
    mine = max([peak for name, peak in result["peak_memory"].items()
                if name.startswith("sluice") and name != "sluice-null"], default=0)
    if mine:
        met = "met" if mine <= 1 << 30 else "**short**"
        lines.append(f"| memory, whole run | ≤ 1 GiB | {mine >> 20} MiB | {met} |")
    return lines


# Percent of the machine's time that others may take before a figure is doubtful.
QUIET = 3


def notes(row):
    """What is to be known of a row's windows, and of what else the machine did."""
    said = []
    for key, who in (("foreign_percent", "other programs"), ("stolen_percent", "the hypervisor")):
        most = max((figures.get(key, 0) for series in row["rounds"].values()
                    for figures in series), default=0)
        if most > QUIET:
            said.append(f"{who} took up to {most:.0f}% of the machine meanwhile: doubtful")
    for figures in row["rounds"].get(row["ours"], []):
        if "constant" not in figures:
            continue
        if not figures["window_seconds"]:
            said.append("no window of constant fill was found: the figure is the whole run's")
            continue
        said.append(
            f"window of {figures['window_seconds']:g} s, the log {percent(figures['fill_begin'])} "
            f"full at its begin, {percent(figures['fill_end'])} at its end, "
            f"{percent(figures['fill_low'])} to {percent(figures['fill_high'])} in between"
            + ("" if figures["constant"] else ": less than half of the run"))
    return said


def percent(part):
    return f"{100 * part:.0f}%"


def memory_table(result):
    peaks = result["peak_memory"]
    return ["| server | peak memory, all its processes |", "| --- | --- |",
            *(f"| {name} | {peak >> 20} MiB |" for name, peak in peaks.items() if peak)]


def growth_lines(part):
    """One part of the cost as work grows, as a table: cases against the simple one."""
    keys = part["keys"]
    lines = [f"| {part['axis']} | " + " | ".join(keys.values()) + " |",
             "| --- |" + " --- |" * len(keys)]
    simple = part["cases"][0]
    for case in part["cases"]:
        cells = [case["name"]]
        for key in keys:
            value, base = case.get(key), simple.get(key)
            text = number(value)
            if value and base and case is not simple and key not in part.get("plain", ()):
                text += f" (× {value / base:.2f})"
            cells.append(text)
        lines.append("| " + " | ".join(cells) + " |")
    return lines + [f"({text})" for text in part.get("notes", [])]


def between(text, marker, lines):
    """Replaces what stands between a pair of markers."""
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    head, rest = text.split(begin, 1)
    return head + begin + "\n" + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1]


def machine_lines(result):
    lines = []
    for run in result.get("runs", [result]):
        machine = run["machine"]
        size = "a QUICK run: small and noisy" if run["quick"] else f"{run['rounds']} rounds"
        lines += ["", f"{run.get('parts_kept', '')}Commit {machine['commit']}, {machine['date']}; "
                  f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, kernel "
                  f"{machine['kernel']}; {size}, {run['seconds']} s in all."]
    return [*lines, ""]


def merged(runs):
    """One result of several runs, oldest first: each part as the last that measured it has it."""
    rows, growth, points, memory, origin = {}, {}, {}, {}, {}
    for number, run in enumerate(runs):
        for kind, known, new in (
                ("row", rows, {row["name"]: row for row in run["rows"]}),
                ("growth", growth, run["growth"]), ("point", points, run["points"])):
            known |= new
            origin |= {(kind, name): number for name in new}
        memory |= run["peak_memory"]
    for number, run in enumerate(runs):
        kept = [f"{kind} {name}" for (kind, name), whose in origin.items() if whose == number]
        all_rows = {f"row {name}" for name in rows}
        if all_rows and all_rows <= set(kept):
            kept = ["all rows", *(part for part in kept if part not in all_rows)]
        run["parts_kept"] = ", ".join(kept) + ": " if kept else ""
    return {**runs[-1], "rows": list(rows.values()), "growth": growth, "points": points,
            "peak_memory": memory, "runs": [run for run in runs if run["parts_kept"]]}


def how_lines(result):
    return ["", *(f"- {row['title']}: {row['how']}." for row in result.get("rows", [])), ""]


def images(place, pattern):
    """Links to the plots of a run that fit."""
    return [f"![{path.stem}](performance/{path.name})" for path in sorted(place.glob(pattern))]


def write(result, docs):
    """Plots and tables into the documentation; nothing of an earlier run stays."""
    page, place = docs / "performance.md", docs / "performance"
    plots.draw(result, place)
    grown = [line for name, part in result.get("growth", {}).items()
             for line in ("", f"### {part['title']}", "", part["what"], "", *growth_lines(part), "",
                          *images(place, f"growth-{name}*.svg"))]
    text = page.read_text()
    for marker, lines in {
            "machine": machine_lines(result), "how": how_lines(result),
            "goals": ["", *goal_table(result), ""],
            "table": ["", *contenders(result), "", *memory_table(result), ""],
            "plots": ["", *images(place, "row-*.svg"), ""], "growth": [*grown, ""]}.items():
        text = between(text, marker, lines)
    page.write_text(text)


def main():
    runs = [json.loads(pathlib.Path(path).read_text()) for path in sys.argv[1:]]
    result = runs[0] if len(runs) == 1 else merged(runs)
    print("\n".join(table(result)))
    for part in result.get("growth", {}).values():
        print("\n" + part["title"] + "\n" + "\n".join(growth_lines(part)))
    write(result, pathlib.Path(__file__).resolve().parent.parent / "docs")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: bench/report.py RESULTS.json...")
    main()
