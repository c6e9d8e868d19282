#!/usr/bin/python3
"""Real clients against a real daemon, and bad input.

    Tests/Interop/run.py [--list] [--only TEXT] [--keep] [--binary PATH]
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "Support"))

# Each registers its tests.
import clients  # noqa: E402, F401
import fio_verify  # noqa: E402, F401
import bad_messages  # noqa: E402, F401
import refusals  # noqa: E402, F401
import snapshots  # noqa: E402, F401
import full_pool  # noqa: E402, F401
import damage  # noqa: E402, F401
import scale  # noqa: E402, F401
import latency  # noqa: E402, F401
from sluicetest import runner  # noqa: E402

if __name__ == "__main__":
    sys.exit(runner.main(__doc__.splitlines()[0]))
