"""How a command ends: the exit code of what was raised, and the process without the interpreter's own teardown."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from tau2_lightning.errors import ConfigError, Tau2LightningError


def exit_code(work: Callable[[], int]) -> int:
    """What ``work`` returns, or for what it raises: 1 failed, 2 bad configuration, 130 interrupted, said on stderr.

    Whatever is not raised on purpose passes through, with its traceback.
    """
    try:
        return work()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Tau2LightningError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


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
