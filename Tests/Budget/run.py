#!/usr/bin/python3
"""What an operation may cost the engine: instructions and allocations, held to a budget.

    Tests/Budget/run.py [--only TEXT]

`sluice-cost` does 4 KiB operations on an engine whose devices are memory; callgrind counts inside
its load, destaging and checkpoint included. Such counts hardly differ from run to run, which times
do. What the devices in memory take is left out.

budget.json has the most instructions that an operation of each case may take. A change that makes
one cheaper lowers its figure there; one that makes it dearer says why. Branches are compared with
plain disks besides. After many snapshots or clones a disk lies in more and shorter extents, which
costs a look-up in its map some hundred instructions more.
"""

import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "Support"))

from sluicetest import runner, tools  # noqa: E402
from sluicetest.runner import ROOT, expect, test  # noqa: E402

COST = ROOT / ".build/release/sluice-cost"
BUDGET = json.loads((HERE / "budget.json").read_text())
OPERATIONS = 2048
# Functions of the C and Swift runtimes that give out memory.
ALLOCATE = ("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc")
counted = {}


def callgrind(context, case):
    """Instructions and allocations of one operation of a case."""
    if case in counted:
        return counted[case]
    file = context.path(f"{case}.callgrind")
    tools.run(
        ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={file}",
         "--zero-before=*measuredLoad*", COST, case, str(OPERATIONS)], timeout=600)
    profile = Profile(file.read_text())
    instructions = profile.instructions - profile.called("performDeviceOp")[1]
    allocations = sum(profile.called(name)[0] for name in ALLOCATE)
    counted[case] = (instructions / OPERATIONS, allocations / OPERATIONS)
    return counted[case]


class Profile:
    """What callgrind has written (its manual, "Callgrind Format Specification"). A function is
    named once, as `(id) name`, and is `(id)` from there on; a version of a name has a suffix."""

    def __init__(self, text):
        self.instructions = 0
        self.calls = {}
        names, callee = {}, ""
        lines = iter(text.splitlines())
        for line in lines:
            if line.startswith(("fn=", "cfn=")):
                number, _, name = line.partition("=")[2].partition(" ")
                if name:
                    names[number] = re.split(r"['@]", name)[0]
                callee = names.get(number, "")
            elif line.startswith("calls="):
                # The line behind has the cost of these calls.
                cost = int(next(lines).split()[-1])
                count, sum_ = self.calls.get(callee, (0, 0))
                self.calls[callee] = (count + int(line[6:].split()[0]), sum_ + cost)
            elif line.startswith("totals:"):
                self.instructions = int(line.split()[1])

    def called(self, name):
        """Calls of a function of C, or of the Swift functions that have the name in theirs, and
        the instructions in them."""
        found = [pair for known, pair in self.calls.items()
                 if known == name or (known.startswith("$s") and f"{len(name)}{name}" in known)]
        return sum(count for count, _ in found), sum(cost for _, cost in found)


def budget_test(case, limit):
    @test(f"{case}: at most {limit} instructions an operation, and no allocation")
    def _(context):
        instructions, allocations = callgrind(context, case)
        context.note(f"{instructions:.0f} instructions, {allocations:.4f} allocations")
        expect(instructions <= limit, f"{instructions:.0f} instructions, not {limit} or fewer")
        # What a destage cycle allocates is shared by thousands of operations.
        expect(allocations < 0.05, f"{allocations:.3f} allocations an operation")


def even_test(case, plain, limit):
    @test(f"{case}: at most {limit} times the instructions of {plain}")
    def _(context):
        ratio = callgrind(context, case)[0] / callgrind(context, plain)[0]
        context.note(f"ratio {ratio:.3f}")
        expect(ratio <= limit, f"{ratio:.3f} times the instructions of {plain}")


for name, most in BUDGET["instructions"].items():
    budget_test(name, most)
for pair in BUDGET["even"]:
    even_test(*pair)

if __name__ == "__main__":
    sys.exit(runner.main(__doc__.splitlines()[0]))
