"""Ends the process after its exit handlers, without the interpreter's own teardown."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Run the exit handlers, flush, and end with ``code``.

    Torch imports triton where it is installed, whose bindings report a page of leaks of their own when the interpreter
    is torn down; the last thing on screen should be the report of the run.
    """
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
