"""The choice of the server of a pool for each request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence

from .member import EngineMember

REMEMBERED_SESSIONS = 100_000


class Router:
    """Keeps the requests of a session at one server, for its prefix cache, and spreads sessions by load."""

    def __init__(self) -> None:
        self._homes: OrderedDict[str, EngineMember] = OrderedDict()

    def choose(
        self, members: Sequence[EngineMember], session: str | None, avoid: Container[str]
    ) -> EngineMember | None:
        """The session's server, else the one with the fewest requests; None when no member is ready.

        Members whose names are in ``avoid`` are taken only when there is no other.
        """
        if session is not None and (home := self._homes.get(session)) and home.ready and home.name not in avoid:
            return home
        ready = [member for member in members if member.ready]
        preferred = [member for member in ready if member.name not in avoid] or ready
        chosen = min(preferred, key=lambda member: member.inflight, default=None)
        if session is not None and chosen is not None:
            self._homes[session] = chosen
            self._homes.move_to_end(session)
            if len(self._homes) > REMEMBERED_SESSIONS:
                self._homes.popitem(last=False)
        return chosen
