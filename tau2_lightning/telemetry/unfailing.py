"""Text streams that never raise: a run does not depend on its screen or its log.

The reader of a screen may end before the run does: a terminal is closed, ``| tee`` is killed. The disk with the log may
be full. Whatever is printed then would raise, in the middle of a save or of an engine's supervision.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class Unfailing:
    """``stream``, but ``write`` and ``flush`` drop what cannot be written. ``at_first`` gets the first error of these.

    It goes on trying: a disk may have room again. Everything else is the stream's own.
    """

    def __init__(self, stream: TextIO, at_first: Callable[[OSError], None] | None = None) -> None:
        self._stream, self._at_first = stream, at_first

    def write(self, text: str) -> int:
        """Write ``text``; returns its length, also where it is dropped."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Bring what was written to its reader."""
        self._try(self._stream.flush)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            tell, self._at_first = self._at_first, None
            if tell is not None:
                tell(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unfailing_screen() -> Iterator[None]:
    """Inside, ``sys.stdout`` and ``sys.stderr`` are `Unfailing`."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast("TextIO", Unfailing(sys.stdout)), cast("TextIO", Unfailing(sys.stderr))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
