#!/usr/bin/python3
"""No crash loses an acknowledged write: stamped blocks across kill -9 and restarts.

    Tests/Crash/run.py [--seed N] [--rounds N] [--only TEXT] [--binary PATH]

The load is decided by the seed, which is printed: `--seed N` replays its decisions. The daemon's
own timing is not replayed; where a failure needs that, the simulation has it.
"""

import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "Support"))

import model_tests  # noqa: E402, F401
from load import Load, seeded  # noqa: E402
from model import SECTOR, DiskModel, Violation  # noqa: E402
from sluicetest import runner  # noqa: E402
from sluicetest.daemon import Pool  # noqa: E402
from sluicetest.runner import Failure, test  # noqa: E402

MIB = 1 << 20


class Torture:
    """A pool, its disks' models, and rounds of load that end with the daemon's death."""

    def __init__(self, context, disks, size, connections, **pool):
        self.context = context
        self.seed = context.options.seed
        if self.seed is None:
            self.seed = int.from_bytes(os.urandom(4), "big")
        context.note(f"seed {self.seed}")
        self.connections = connections
        self.pool = Pool(context, **pool)
        self.pool.start()
        clock = [0]
        self.models = [
            DiskModel(number, size // SECTOR, self.seed, clock) for number in range(disks)]
        for number in range(disks):
            self.pool.create_disk(self.name(number), str(size))
        self.operations = 0
        self.slowest_start = 0.0

    @staticmethod
    def name(number):
        return f"disk{number}"

    def connect(self):
        return Load(self.models, self.connections, lambda disk: self.pool.uri(self.name(disk)))

    def round(self, number):
        """Load, death in the middle of it, restart, everything read back."""
        noise = seeded(self.seed, f"round {number}")
        load = self.connect()
        load.run(noise, noise.randrange(200, 3000), depth=noise.choice((1, 4, 16)))
        clean = noise.random() < 0.15
        if clean:
            self.pool.stop()
        else:
            self.pool.kill()
        # Answers that were sent before the death count.
        load.drain()
        self.operations += load.completed
        load.close()
        for model in self.models:
            model.abandon()
        if noise.random() < 0.25:
            # Death in the middle of recovery.
            self.pool.launch()
            time.sleep(noise.random() * 0.2)
            self.pool.kill()
        self.slowest_start = max(self.slowest_start, self.pool.start())
        self.read_back()

    def read_back(self):
        load = self.connect()
        load.read_back()
        load.close()
        self.pool.verify_alive()

    def run(self, rounds):
        number = 0
        try:
            for number in range(rounds):
                self.round(number)
            self.pool.cli("flush")
            self.read_back()
            self.pool.restart()
            self.read_back()
        except Violation as broken:
            raise Failure(
                f"round {number} of seed {self.seed}: {broken}\n"
                f"again: Tests/Crash/run.py --seed {self.seed} --rounds {rounds}\n"
                f"the daemon said:\n{self.pool.said()}") from None
        checked = sum(model.checked for model in self.models)
        self.context.note(
            f"{rounds} rounds, {self.operations} operations, {checked} sectors checked, "
            f"slowest start {self.slowest_start:.2f} s")


def rounds(context, otherwise):
    return context.options.rounds or otherwise


@test("across dozens of kill -9 each block is the last acknowledged version or a later one")
def _(context):
    Torture(context, disks=4, size=24 * MIB, connections=2).run(rounds(context, 36))


@test("the same with a cache of 16 MiB, more disks, and one connection each")
def _(context):
    torture = Torture(context, disks=12, size=16 * MIB, connections=1,
                      arguments=["--cache", "16M"])
    torture.run(rounds(context, 8))


@test("the same for disks with durability=flush: a killed daemon had written what it answered")
def _(context):
    torture = Torture(context, disks=3, size=32 * MIB, connections=2)
    for number in range(3):
        torture.pool.cli("disk", "set", torture.name(number), "durability=flush")
    torture.run(rounds(context, 8))


def extra(parser):
    parser.add_argument("--rounds", type=int, default=None, help="rounds of load and death")


if __name__ == "__main__":
    sys.exit(runner.main(__doc__.splitlines()[0], extra))
