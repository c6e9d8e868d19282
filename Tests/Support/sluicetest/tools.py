"""Running other programs: with a deadline, and never outliving the tests."""

import ctypes
import json
import os
import random
import signal
import subprocess
import time

from .runner import Failure

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(command, **arguments):
    """Starts a process that is killed when the runner dies."""
    return subprocess.Popen(
        [str(word) for word in command], preexec_fn=_die_with_parent, **arguments)


def finish(process, timeout=10):
    """Ends a process, gently first."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run(command, timeout=120, status=0, text=True, **arguments):
    """Runs a command to its end and returns what it did; another exit status is a failure."""
    process = spawn(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=text, **arguments)
    line = " ".join(str(word) for word in command)
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # Not SIGTERM: a fio whose server died ignores it.
        process.kill()
        output, errors = process.communicate()
        raise Failure(f"not done after {timeout} s: {line}\n{errors}") from None
    except BaseException:
        process.kill()
        process.wait()
        raise
    done = subprocess.CompletedProcess(command, process.returncode, output, errors)
    if status is not None and done.returncode != status:
        raise Failure(
            f"exit status {done.returncode}, not {status}: {line}\n{output}\n{errors}"[:4000])
    return done


def run_json(command, **arguments):
    return json.loads(run(command, **arguments).stdout)


def wait_until(condition, timeout, what):
    """Waits for a condition to hold; returns its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure(f"waited {timeout} s in vain: {what}")
        time.sleep(0.05)


def as_root(command):
    """The command as root runs it."""
    return list(command) if os.geteuid() == 0 else ["sudo", "-n", *command]


def make_image(path, size, seed=1, holes=True):
    """Writes a raw image of seeded noise with holes between, and returns its data ranges."""
    noise = random.Random(seed)
    ranges = []
    with open(path, "wb") as file:
        file.truncate(size)
        offset = 0
        while offset < size:
            length = min(size - offset, noise.choice((4096, 65536, 1 << 20, 3 << 20)))
            if not holes or noise.random() < 0.4:
                file.seek(offset)
                file.write(noise.randbytes(length))
                ranges.append((offset, length))
            offset += length
    return ranges
