"""What a server is waited for, since when and why: for the screen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Waits:
    """``what`` is done about the server now (empty: it serves), ``why``; ``since`` is in seconds of ``time.monotonic``.

    Only the event loop's thread writes; any thread may read.
    """

    def __init__(self) -> None:
        self.what = self.why = ""
        self.since = time.monotonic()

    def begin(self, what: str, why: str | None = None, since: float | None = None) -> None:
        """The server is out of service, by default from now on, and ``what`` is done. Without a ``why`` the known one
        stays."""
        if not self.what or since is not None:
            self.since = time.monotonic() if since is None else since
        self.what, self.why = what, self.why if why is None else why

    def end(self) -> None:
        """The server serves again."""
        self.what = self.why = ""

    @contextmanager
    def during(self, what: str, since: float) -> Iterator[None]:
        """``what`` holds inside, beginning at ``since``; what is found out meanwhile stays."""
        self.what, self.since = what, since
        try:
            yield
        finally:
            if self.what == what:
                self.what = ""

    def describe(self, name: str) -> str:
        """One clause for the screen; empty while the server serves."""
        what, why = self.what, self.why
        if not what:
            return ""
        return f"{name} {what}, for {time.monotonic() - self.since:.0f} s" + (f" ({why})" if why else "")
