"""A small test runner: one behaviour is one test, named by a sentence.

    @test("a disk keeps what qemu-img wrote to it")
    def _(context): ...

Each test gets a `Context`: a fresh directory and a stack of things to undo, undone in reverse
order however the test ends. Signals count as an ordinary end. Processes that a test starts die
with the runner (see `tools.spawn`), mounts live in a mount namespace of the runner's own, so that
even `kill -9` of it leaves only a directory behind.
"""

import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[3]
CLONE_NEWNS = 0x00020000

_tests = []


class Failure(Exception):
    """A test's own verdict: the message says what was expected and what was found."""


def test(sentence):
    def register(function):
        _tests.append((sentence, function))
        return function

    return register


def expect(condition, message):
    if not condition:
        raise Failure(message)


class Context:
    """What one test works with."""

    def __init__(self, directory, options):
        self.directory = pathlib.Path(directory)
        self.options = options
        self.stack = contextlib.ExitStack()
        # Checks to make when the test body is done and nothing failed, before the undoing.
        self.closing_checks = []

    def path(self, name):
        return self.directory / name

    def note(self, text):
        """A figure worth seeing in the log."""
        print(f"      {text}", flush=True)


def _private_mounts():
    """Gives this process its own mount namespace, when it may: mounts then end with it."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) == 0:
        os.system("mount --make-rprivate /")


def _options(description, extra):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", default="", metavar="TEXT", help="tests whose name has TEXT")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--keep", action="store_true", help="keep directories of failed tests")
    parser.add_argument(
        "--binary", default=str(ROOT / ".build/release/sluice"), help="the sluice to test")
    parser.add_argument("--seed", type=int, default=None, help="replay with this seed")
    if extra is not None:
        extra(parser)
    return parser.parse_args()


def _run_one(sentence, function, options):
    """Returns True when the test passed."""
    began = time.monotonic()
    # Not under TMPDIR, which may be memory: pools need a file system with direct I/O.
    directory = tempfile.mkdtemp(prefix="sluice-", dir="/var/tmp")
    context = Context(directory, options)
    failed = None
    try:
        with context.stack:
            function(context)
            for check in context.closing_checks:
                check()
    except Exception as error:  # noqa: BLE001  # the runner reports whatever a test raises
        failed = error
    finally:
        seconds = time.monotonic() - began
        if failed is None or not options.keep:
            shutil.rmtree(directory, ignore_errors=True)
    if failed is None:
        print(f"ok    {sentence} ({seconds:.1f} s)", flush=True)
        return True
    print(f"FAIL  {sentence} ({seconds:.1f} s)", flush=True)
    if isinstance(failed, Failure):
        text = str(failed)
    else:
        text = "".join(traceback.format_exception(failed))
    for line in text.rstrip().splitlines():
        print(f"      {line}")
    if options.keep:
        print(f"      kept: {directory}")
    sys.stdout.flush()
    return False


def main(description, extra=None):
    """Runs the registered tests; the exit status is 1 when one failed."""
    sys.stdout.reconfigure(errors="replace")
    options = _options(description, extra)
    chosen = [item for item in _tests if options.only in item[0]]
    if options.list:
        for sentence, _ in chosen:
            print(sentence)
        return 0
    if not os.access(options.binary, os.X_OK):
        print(f"{options.binary} is not there; build it with `make build`", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # Where Debian keeps mkfs and e2fsck, which a user's path lacks.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    _private_mounts()
    passed = failed = 0
    for sentence, function in chosen:
        if _run_one(sentence, function, options):
            passed += 1
        else:
            failed += 1
    summary = os.environ.get("SLUICE_TEST_SUMMARY")
    if summary:
        # Under `make test` only the sum of all stages is printed as a closing line.
        pathlib.Path(summary).write_text(json.dumps({"passed": passed, "failed": failed}))
    else:
        print(f"{passed} passed, {failed} failed")
    return 1 if failed or not chosen else 0
