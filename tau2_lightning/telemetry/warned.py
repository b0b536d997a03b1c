"""The warnings of a run: each one is shown once, and all of them again at its end."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

MOST = 20  # of the list at the end: the newest ones

_lock = threading.Lock()
_runs: list[dict[str, int]] = []  # of each run that is going on: how often each text was to be shown


def warn(text: str) -> None:
    """Show ``text`` as a warning on stderr, unless this run has shown it already. For any thread."""
    with _lock:
        if _runs:
            said = _runs[-1]
            said[text] = said.get(text, 0) + 1
            if said[text] > 1:
                return
    print(f"warning: {text}", file=sys.stderr, flush=True)


def warnings_so_far() -> list[str]:
    """The warnings of this run in the order in which they were first shown, each with the number of its repetitions."""
    with _lock:
        said = dict(_runs[-1]) if _runs else {}
    return [text if count == 1 else f"{text} ({count} times)" for text, count in said.items()]


@contextmanager
def warned_again(*, shown: bool = True) -> Iterator[None]:
    """A run: its warnings are listed at its end, however it ends, where they are ``shown``.

    Inside, what Python code warns of (`warnings.warn`) is a warning of the run, too: one line instead of two with
    source code. A run inside another one is a part of it.
    """
    with _lock:
        nested = bool(_runs)
        if not nested:
            _runs.append({})
    if nested:
        yield
        return
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _of_python
            yield
    finally:
        found = warnings_so_far()
        with _lock:
            _runs.pop()
        for line in listed(found) if shown else ():
            print(line, file=sys.stderr, flush=True)


def listed(texts: Sequence[str]) -> list[str]:
    """The lines of the list at the end: the newest `MOST` warnings; none without warnings."""
    if not texts:
        return []
    left = len(texts) - MOST
    more = [f"  - and {left} more before these"] if left > 0 else []
    head = f"{len(texts)} warning{'s' if len(texts) > 1 else ''} of this run:"
    return [head, *more, *(f"  - {text}" for text in texts[-MOST:])]


def _of_python(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """`warnings.showwarning` of a run."""
    path = Path(filename)
    warn(f"{category.__name__}: {' '.join(str(message).split())} ({path.parent.name}/{path.name}:{lineno})")
