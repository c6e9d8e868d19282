"""Goals as data, and whether the medians of a row reach them.

A goal compares one figure of a row (`key`; "value" is what the row is about) of one side (`of`)
with the best of other sides (`than`: their labels, or "null" or "peers", which stand for several).
A goal whose sides were not measured says so, instead of being met.
"""

import collections

# Kinds: "ratio" (ours / best of `than`), "added" (microseconds of one operation above the sum of
# the best of each of `than`), "absolute" (ours alone). `sign` is ">=" or "<=".
Goal = collections.namedtuple("Goal", "kind sign bar than key of either")

GROUPS = {
    "null": ("nbdkit-null", "sluice-null"),
    "peers": ("raw", "raw-native", "qcow2", "nbdkit-file"),
}
# Figures of which more is better.
MORE = ("value", "iops", "mb_s")


def at_least(bar, than, key="value", of="sluice"):
    return Goal("ratio", ">=", bar, (than,), key, of, ())


def at_most(bar, than, key, of="sluice"):
    return Goal("ratio", "<=", bar, (than,), key, of, ())


def added(microseconds, *than, of="sluice"):
    """An operation at QD1 takes so many microseconds more than the sum of those of `than`."""
    return Goal("added", "<=", microseconds, than, "value", of, ())


def absolute(sign, bar, key="value", of="sluice"):
    return Goal("absolute", sign, bar, (), key, of, ())


def lower_of(*goals):
    """The lowest of several bars: reached when one of them is."""
    return Goal("either", "", 0, (), "value", goals[0].of, goals)


def best(name, key, medians):
    """(label, figure) of the best of a group, or None when none was measured. What is not above 0
    was not: a difference, such as processor time, lost in what else the machine did."""
    found = [(label, medians[label][key]) for label in GROUPS.get(name, (name,))
             if label in medians and (medians[label].get(key) or 0) > 0]
    if not found:
        return None
    return (max if key in MORE else min)(found, key=lambda pair: pair[1])


def judge(goal, medians):
    """What came out: {text, figure, bar, sign, met}; `met` is None when it can't be said."""
    if goal.kind == "either":
        parts = [judge(part, medians) for part in goal.either]
        # One that is met is enough; that none is can only be said when all were measured.
        chosen = next((part for part in parts if part["met"]), None) or next(
            (part for part in parts if part["met"] is None), parts[0])
        return {**chosen, "text": " or ".join(part["text"] for part in parts)}
    text = describe(goal)
    result = {"text": text, "kind": goal.kind, "key": goal.key, "of": goal.of, "sign": goal.sign,
              "bar": goal.bar, "than": "+".join(goal.than), "figure": None, "against": None,
              "met": None}
    ours = medians.get(goal.of, {}).get(goal.key)
    found = [best(name, goal.key, medians) for name in goal.than]
    if not ours or ours < 0 or None in found:
        return result
    result["against"] = "+".join(label for label, _ in found)
    if goal.kind == "ratio":
        figure = ours / found[0][1]
    elif goal.kind == "added":
        figure = 1e6 / ours - sum(1e6 / value for _, value in found)
    else:
        figure = ours
    result["figure"] = round(figure, 2)
    result["met"] = figure >= goal.bar if goal.sign == ">=" else figure <= goal.bar
    return result


def describe(goal):
    sign = {">=": "≥", "<=": "≤"}[goal.sign]
    name = "" if goal.key == "value" else {
        "cpu_us": "CPU ", "moved_ratio": "bytes ", "device_ios": "device I/Os ",
        "written_ratio": "bytes written "}.get(goal.key, f"{goal.key} ")
    if goal.kind == "ratio":
        than = "the best peer's" if goal.than == ("peers",) else goal.than[0]
        return f"{name}{sign} {than}" if goal.bar == 1 else f"{name}{sign} {goal.bar:g} × {than}"
    if goal.kind == "added":
        return f"{sign} {' + '.join(goal.than)} + {goal.bar:g} µs"
    return f"{name}{sign} {goal.bar:g}"


def outcome(text, figure, sign, bar):
    """A goal of a point that compares by itself, for the table of goals."""
    met = figure >= bar if sign == ">=" else figure <= bar
    return {"text": text, "kind": "point", "key": "value", "of": "sluice", "sign": sign,
            "bar": bar, "than": "", "figure": figure, "against": None, "met": met}
