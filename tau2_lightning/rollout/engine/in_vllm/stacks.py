"""Lets vLLM's processes write the stacks of all their threads into the server's log when they are asked to.

The signal is that of ``launch/stacks.py``. faulthandler's handler needs no lock of the interpreter, so an engine core
that hangs in a kernel answers, too.
"""

from __future__ import annotations

import faulthandler
import signal
import sys

STACK_SIGNAL = signal.SIGRTMIN + 6 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR1


def answer_with_stacks() -> None:
    """Write the stacks to stderr, which is the server's log, on ``STACK_SIGNAL``."""
    faulthandler.register(STACK_SIGNAL, file=sys.__stderr__ or 2, all_threads=True)
