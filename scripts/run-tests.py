#!/usr/bin/python3
"""Runs every stage of `make test`, in order, and sums them in one closing line.

    scripts/run-tests.py [STAGE...]

Without a name, all of them run.

Each stage's whole output goes to var/test-logs/STAGE.log; what a person wants to see of it goes
to the terminal. The last line is `N passed, M failed`; the exit status is 1 when anything failed.
"""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOGS = ROOT / "var" / "test-logs"
SWIFT = shlex.split(os.environ.get("SWIFT", "swift"))
# As in the Makefile: with the same flags the tests use the objects of `make build`.
RELEASE = ["-c", "release"]
# Optimised, and yet with `@testable` and the check of exclusive access that the product does
# without: other objects than the product's, so a folder of their own.
TESTABLE = ["-Xswiftc", "-enable-testing", "-Xswiftc", "-enforce-exclusivity=checked",
            "--scratch-path", ".build-test"]
# Seeds of the simulation.
SEEDS = os.environ.get("SLUICE_TEST_SEEDS", "300")


class Stage:
    """One stage: a name, its commands, and how its outcome is counted."""

    def __init__(self, name, commands, count=None, quiet=False):
        self.name = name
        self.commands = commands
        self.count = count
        self.quiet = quiet

    def run(self):
        """Returns (passed, failed)."""
        print(f"== {self.name}", flush=True)
        began = time.monotonic()
        log = LOGS / f"{self.name}.log"
        summary = LOGS / f"{self.name}.json"
        summary.unlink(missing_ok=True)
        environment = dict(os.environ, SLUICE_TEST_SUMMARY=str(summary))
        status = 0
        with log.open("w") as output:
            for command in self.commands:
                status = run_logged(command, output, environment, self.quiet)
                if status != 0:
                    break
        passed, failed = self.outcome(log, summary, status)
        if failed and self.quiet:
            show_end(log)
        seconds = time.monotonic() - began
        print(f"== {self.name}: {passed} ok, {failed} not ok, {seconds:.0f} s", flush=True)
        return passed, failed

    def outcome(self, log, summary, status):
        passed, failed = (1, 0) if status == 0 else (0, 1)
        if self.count is not None:
            passed, failed = self.count(log, summary)
            if passed + failed == 0:
                print(f"{self.name}: no test was counted; see {log}")
                failed = 1
        # A stage that ended badly has failed, whatever it counted.
        if status != 0 and failed == 0:
            failed = 1
        return passed, failed


def run_logged(command, output, environment, quiet):
    line = "$ " + shlex.join(map(str, command))
    output.write(line + "\n")
    if not quiet:
        print(line, flush=True)
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        for text in process.stdout:
            output.write(text)
            if not quiet:
                sys.stdout.write(text)
                sys.stdout.flush()
        return process.wait()
    except BaseException:
        # SIGTERM, not SIGKILL: the stage takes its daemons and mounts down.
        process.terminate()
        process.wait()
        raise


def show_end(log):
    """What went wrong in a quiet stage: the lines that say so, and the last ones."""
    lines = log.read_text(errors="replace").splitlines()
    telling = [line for line in lines[:-30] if "\u2718" in line or "error:" in line]
    for line in telling[:60] + lines[-30:]:
        print("   " + line)


def count_swift(log, _):
    """Counts by Swift Testing's closing line: those of single tests are cut in two now and then by
    what a test's own processes print."""
    text = log.read_text(errors="replace")
    total = sum(map(int, re.findall(r"Test run with (\d+) tests? ", text)))
    failed = len(re.findall(r"^\S+ Test (?!run with |case passing )\S.* failed after ", text, re.M))
    return max(0, total - failed), failed


def count_summary(_, summary):
    """Counts by the file that our own runners leave."""
    if not summary.exists():
        return 0, 0
    counts = json.loads(summary.read_text())
    return counts["passed"], counts["failed"]


def count_seeds(log, _):
    """Counts the simulator's seeds."""
    text = log.read_text(errors="replace")
    run = sum(map(int, re.findall(r"^(\d+) seeds, ", text, re.M)))
    failed = len(re.findall(r"^seed \d+ FAILED", text, re.M))
    return max(0, run - failed), failed


def count_planted(log, _):
    """Counts the planted faults: one is a test of the simulator, passed when it is caught."""
    text = log.read_text(errors="replace")
    caught = len(re.findall(r"^\s+caught after ", text, re.M))
    return caught, len(re.findall(r"^\s+not caught by ", text, re.M))


def stages():
    python = sys.executable
    return [
        Stage("format", [SWIFT + ["format", "lint", "--strict", "--recursive",
                                  "Package.swift", "Sources", "Tests"]], quiet=True),
        Stage("build", [SWIFT + ["build", *RELEASE, "--product", product]
                        for product in ("sluice", "sluice-sim", "sluice-cost", "sluice-null")],
              quiet=True),
        Stage("unit", [SWIFT + ["test", *RELEASE, *TESTABLE]],
              count=count_swift, quiet=True),
        Stage("budget", [[python, "Tests/Budget/run.py"]], count=count_summary),
        # Besides what the seeds draw: two profiles that found much for how rarely they are drawn.
        Stage("simulation", [[".build/release/sluice-sim", "run", *profile, "--seeds", f"1..{seeds}"]
                             for profile, seeds in (((), SEEDS), (("--profile", "held"), 100),
                                                    (("--profile", "rotten-tail"), 40))],
              count=count_seeds),
        Stage("planted", [[".build/release/sluice-sim", "planted"]], count=count_planted),
        Stage("interop", [[python, "Tests/Interop/run.py"]], count=count_summary),
        Stage("crash", [[python, "Tests/Crash/run.py"]], count=count_summary),
        Stage("guest", [[python, "Tests/Guest/run.py"]], count=count_summary),
    ]


def main():
    sys.stdout.reconfigure(errors="replace")
    # However this ends, the stages are told and clean up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    wanted = sys.argv[1:]
    known = stages()
    names = [stage.name for stage in known]
    for name in wanted:
        if name not in names:
            sys.exit(f"there is no stage “{name}”; the stages are {', '.join(names)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    passed = failed = 0
    failures = []
    for stage in known:
        if stage.name not in (wanted or names):
            continue
        good, bad = stage.run()
        passed += good
        failed += bad
        if bad:
            failures += failures_of(stage.name) or [f"{stage.name}: see {LOGS}/{stage.name}.log"]
        if bad and stage.name == "build":
            print("nothing more can be tested without the program")
            break
    for line in failures:
        print(f"failed: {line}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def failures_of(stage):
    """The lines of a stage's log that name what failed, for the end of the output."""
    text = (LOGS / f"{stage}.log").read_text(errors="replace")
    telling = re.compile(r"\u2718 Test (?!run with )|^not ok|^seed \d+ FAILED|not caught by"
                         r"|^(?!\S+ Test case passing ).*error:|^FAIL")
    return [f"{stage}: {line.strip()[:300]}" for line in text.splitlines() if telling.search(line)][:20]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
