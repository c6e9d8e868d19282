"""Plots of a run's results, as SVG, drawn by gnuplot."""

import subprocess

OURS, OTHERS = "#1f5fa8", ("#c05020", "#d89030", "#709040", "#806090", "#888888")
# Every plot shows a server in the same colour; Sluice's variants are blue.
COLOURS = {
    "sluice": OURS, "clone": OURS, "new disk": "#5f90c8", "rewrite": "#a8c4e4",
    "raw": "#c05020", "raw+flush8": "#e0a080", "raw-native": "#d89030",
    "raw-native+flush8": "#ecc890", "qcow2": "#709040", "qcow2+flush8": "#b8cc98",
    "overlay": "#4f7020", "nbdkit-file": "#806090", "nbdkit-file+flush8": "#c0a8c8",
    "nbdkit-null": "#888888", "sluice-null": "#606060", "bare": "#303030",
}
HEAD = """
set terminal svg size {width},{height} font "sans-serif,12" background "white"
set output "{path}"
set border 3 lc rgb "#666666"
set tics nomirror
set grid ytics lc rgb "#e0e0e0" lt 1
set key outside top center horizontal
set title "{title}"
"""


def gnuplot(path, title, body, width=860, height=420):
    """Draws one file. Titles and labels are the bench's own words: nothing in them is a quote."""
    script = HEAD.format(path=path, title=title, width=width, height=height) + body
    subprocess.run(["gnuplot"], input=script, text=True, check=True, timeout=60)


def block(name, lines):
    return f"${name} << END\n" + "\n".join(lines) + "\nEND\n"


def bars(path, title, cases, axis):
    """Horizontal groups would need more of gnuplot than it has: one cluster a case.

    `cases`: (name, [(label, value)]).
    """
    labels = list(dict.fromkeys(label for _, values in cases for label, _ in values))
    lines = []
    for name, values in cases:
        found = dict(values)
        lines.append(f'"{name}" ' + " ".join(str(found.get(label, "NaN")) for label in labels))
    body = block("data", lines) + (
        "set style data histograms\nset style histogram clustered gap 1\n"
        "set style fill solid 0.9 border -1\nset boxwidth 0.9\n"
        f'set ylabel "{axis}"\nset yrange [0:*]\nset xtics rotate by -25\n')
    colours = [COLOURS.get(label, ([OURS, *OTHERS])[place % (1 + len(OTHERS))])
               for place, label in enumerate(labels)]
    body += "plot " + ", ".join(
        f'$data using {place + 2}:xtic(1) title "{label}" lc rgb "{colour}"'
        for place, (label, colour) in enumerate(zip(labels, colours)))
    gnuplot(path, title, body + "\n")


def lines(path, title, series, axes, logarithmic=""):
    """`series`: (label, [(x, y)], 1 or 2 for the left or the right axis)."""
    body = f'set xlabel "{axes[0]}"\nset ylabel "{axes[1]}"\nset yrange [0:*]\n'
    if logarithmic:
        body += f"set logscale {logarithmic}\n"
    if any(axis == 2 for _, _, axis in series):
        body += f'set y2label "{axes[2]}"\nset y2tics\nset y2range [0:*]\nset border 11\n'
    for place, (_, data, _) in enumerate(series):
        body += block(f"d{place}", [f"{x} {y}" for x, y in data])
    body += "plot " + ", ".join(
        f'$d{place} using 1:2 axes x1y{axis} with linespoints pt 7 ps 0.5 lw 2 '
        f'lc rgb "{OURS if place == 0 else OTHERS[(place - 1) % len(OTHERS)]}" title "{label}"'
        for place, (label, _, axis) in enumerate(series))
    gnuplot(path, title, body + "\n")


def by_row(result, names, key, scale=1):
    cases = []
    for row in result.get("rows", []):
        if row["name"] in names:
            cases.append((row["name"], [
                (label, figures[key] / scale)
                for label, figures in row["medians"].items() if figures.get(key)]))
    return cases


def sustained(result, place):
    for row in result.get("rows", []):
        figures = row["rounds"].get(row["ours"], [])
        if row["kind"] != "window" or not figures or "fills" not in figures[-1]:
            continue
        last = figures[-1]
        lines(place / f"row-{row['name']}.svg", f"Sluice: {row['title']}", [
            ("IOPS (thousands)", [(at, iops / 1000) for at, iops in last["series"]], 1),
            ("fill of the log (%)", [(at, 100 * fill) for at, fill in last["fills"]], 2)],
            ("seconds", "IOPS (thousands)", "fill of the log (%)"))


def growth(result, place):
    for name, part in result.get("growth", {}).items():
        cases = part["cases"]
        if part.get("plot") == "line":
            for key, title in part["drawn"].items():
                series = [(title, [(case["x"], case[key]) for case in cases if key in case], 1)]
                beside = part.get("beside", {}).get(key)
                if beside and all(beside in case for case in cases):
                    series.append((part["keys"][beside],
                                   [(case["x"], case[beside]) for case in cases], 1))
                lines(place / f"growth-{name}-{key}.svg", f"{part['title']}: {title}", series,
                      (part["axis"], title), "x")
            continue
        simple = cases[0]
        bars(place / f"growth-{name}.svg", f"{part['title']}, relative to {simple['name']}",
             [(title, [(case["name"], case[key] / simple[key]) for case in cases
                       if case.get(key) and simple.get(key)])
              for key, title in part["drawn"].items()], "ratio")


def draw(result, place):
    """All plots of one run into one directory, instead of those of an earlier one."""
    place.mkdir(exist_ok=True)
    for path in place.glob("*.svg"):
        path.unlink()
    groups = {
        "blender": (("blender", "blender-sustained"), "iops", 1000, "IOPS (thousands)",
                    "I/O blender: 16 disks, 4K random write + flush at QD1"),
        "one-disk": (("write1", "sync1", "read1", "cached1", "first"), "iops", 1000,
                     "IOPS (thousands)", "One disk at QD1, 4K random"),
        "depth": (("write32", "write32-sustained", "read32", "cached32"), "iops", 1000,
                  "IOPS (thousands)", "One disk at QD32, 4K random"),
        "sequential": (("seqwrite", "seqread"), "mb_s", 1, "MB/s", "Sequential, 1 MiB QD8"),
        "processor": (("blender", "write1", "sync1", "write32", "read32", "first"), "cpu_us", 1,
                      "µs", "Processor time of one operation, the machine's less the client's"),
    }
    for name, (rows, key, scale, axis, title) in groups.items():
        cases = by_row(result, rows, key, scale)
        if cases:
            bars(place / f"row-{name}.svg", title, cases, axis)
    sustained(result, place)
    growth(result, place)
