"""Texts that somebody else wrote, without the secrets that this process knows: errors of libraries quote what they were
given, and an interpolation (``${oc.env:NAME}``) brings a key into any value.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterable
from types import TracebackType

from .secrets import HIDDEN, SHORTEST_SECRET, environment_secrets

_remembered: set[str] = set()


def remember(secrets: Iterable[str]) -> None:
    """Hide these texts from now on, those of at least `SHORTEST_SECRET` characters."""
    _remembered.update(one for one in secrets if len(one) >= SHORTEST_SECRET)


def redacted(text: str) -> str:
    """``text`` with ``***`` in the place of every secret: those that were remembered, and those of the environment.
    Also where a secret was written as JSON or as a Python string."""
    for secret in sorted({*_remembered, *environment_secrets(os.environ)}, key=len, reverse=True):
        for form in {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}:
            text = text.replace(form, HIDDEN)
    return text


def hide_in_tracebacks() -> None:
    """Let the tracebacks and log lines that Python itself prints on stderr be `redacted`, in all threads."""
    sys.excepthook = _print_exception
    threading.excepthook = _print_thread_exception
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_RedactingFormatter())


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The record's line, `redacted`."""
        return redacted(super().format(record))


def _print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))


def _print_thread_exception(given: threading.ExceptHookArgs) -> None:
    if given.exc_type is SystemExit:
        return
    lines = traceback.format_exception(given.exc_type, given.exc_value, given.exc_traceback)
    name = given.thread.name if given.thread is not None else "a thread"
    sys.stderr.write(redacted(f"Exception in {name}:\n" + "".join(lines)))
