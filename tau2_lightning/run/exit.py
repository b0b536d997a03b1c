"""The end of a command: exit codes of errors, and leaving the process without the interpreter's teardown."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from tau2_lightning.config.redaction import redacted
from tau2_lightning.errors import ConfigError, Tau2LightningError
from tau2_lightning.launch.stopping import Stopped
from tau2_lightning.telemetry.unfailing import unfailing_screen


def exit_code(work: Callable[[], int]) -> int:
    """The exit code of ``work``: what it returns, or for its errors 1 failed, 2 bad configuration, 130 interrupted, 143
    terminated, 129 its terminal closed.

    Errors are printed on stderr, without secrets. Errors that are not ours pass through, with their traceback. A screen
    that is gone (a closed terminal, a reader that ended) changes neither the work nor its exit code.
    """
    with unfailing_screen():
        return _exit_code(work)


def _exit_code(work: Callable[[], int]) -> int:
    try:
        return work()
    except ConfigError as error:
        print(redacted(f"error: {error}"), file=sys.stderr)
        return 2
    except Stopped as stopped:
        print("interrupted" if stopped.number == signal.SIGINT else f"stopped by {stopped}", file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Tau2LightningError as error:
        print(redacted(f"error: {type(error).__name__}: {error}"), file=sys.stderr)
        return 1


def leave(code: int) -> NoReturn:
    """Run the exit handlers, flush, and end the process with ``code``.

    Torch imports triton where it is installed, and triton's bindings print a page of leaks when the interpreter is torn
    down. The report of the run should be the last text on screen.
    """
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)
