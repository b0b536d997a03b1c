"""Why a server does not serve, and since when: for the screen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Waits:
    """``what`` names what happens to the server now, such as a restart (empty: it serves), ``why`` the reason, and
    ``since`` the begin, in seconds of ``time.monotonic``.

    Only the event loop's thread writes; any thread may read.
    """

    def __init__(self) -> None:
        self.what = self.why = ""
        self.since = time.monotonic()

    def begin(self, what: str, why: str | None = None, since: float | None = None) -> None:
        """Note that the server does not serve, by default from now on. With ``why`` None the earlier reason is kept."""
        if not self.what or since is not None:
            self.since = time.monotonic() if since is None else since
        self.what, self.why = what, self.why if why is None else why

    def end(self) -> None:
        """The server serves again."""
        self.what = self.why = ""

    @contextmanager
    def during(self, what: str, since: float) -> Iterator[None]:
        """Note ``what`` for the time of the ``with`` block. What others note meanwhile is kept at its end."""
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
