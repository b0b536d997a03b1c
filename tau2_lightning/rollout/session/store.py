"""All sessions of the proxy: start, look up by key, reward, export, end, abort, reap."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tau2_lightning.errors import InfrastructureFault, SessionError
from tau2_lightning.trajectory import Trajectory

from .export import export, outside_rows
from .requests import Request
from .rewards import as_reward
from .tree import Session
from .unanswered import client_left, repeats, unanswered

KEY_PREFIX = "tl-"


@dataclass(frozen=True)
class SessionSettings:
    """Limits of sessions, and how rewards are shaped for outside programs.

    ``invalid_format_penalty`` and ``turn_discount`` concern ``export_json`` only; in training the algorithm applies
    its own. A session idle for ``idle_timeout`` seconds is reaped; at most ``max_sessions`` are open and at most
    ``max_turns`` turns recorded in each. A session that holds ``max_bytes`` (`Session.held_bytes`) takes no more
    requests.
    """

    invalid_format_penalty: float = 0.0
    turn_discount: float = 1.0
    idle_timeout: float = 3600.0
    max_sessions: int = 10_000
    max_turns: int = 1_000
    max_bytes: int = 256 << 20


class SessionStore:
    """Sessions by id. Not thread-safe for one session; different threads may use different sessions.

    ``counters`` counts started, ended, aborted, reaped sessions and branches over the store's life.
    ``on_close`` are called with every session that is closed with its rewards set, ``on_lost`` with every one that is
    aborted or reaped instead, and which of the two.
    """

    def __init__(self, settings: SessionSettings | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings or SessionSettings()
        self.counters: Counter[str] = Counter()
        self.on_close: list[Callable[[Session], None]] = []
        self.on_lost: list[Callable[[Session, str], None]] = []
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def start(
        self,
        *,
        task_id: str = "",
        group_id: str = "",
        metadata: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
        fixed_sampling: Mapping[str, Any] | None = None,
    ) -> Session:
        """Open a session. Its ``api_key`` is valid for this session only.

        ``tools`` and ``chat_template_kwargs`` stand in for requests that leave them out, ``sampling`` (fields of a
        chat completion request) likewise; ``fixed_sampling`` takes the place of what requests name. Raises
        SessionError(``too_many_sessions``).
        """
        if len(self._sessions) >= self.settings.max_sessions:
            raise SessionError("too_many_sessions", f"{len(self._sessions)} sessions are open, the limit of this proxy")
        session_id = secrets.token_hex(12)
        now = self._clock()
        session = self._sessions[session_id] = Session(
            session_id,
            f"{KEY_PREFIX}{session_id}-{secrets.token_urlsafe(32)}",
            task_id,
            group_id,
            dict(metadata or {}),
            tools,
            dict(chat_template_kwargs or {}),
            dict(sampling or {}),
            dict(fixed_sampling or {}),
            started_at=now,
            last_used=now,
        )
        self.counters["started"] += 1
        return session

    def get(self, session_id: str) -> Session:
        """Raises SessionError(``session_not_found``)."""
        found = self._sessions.get(session_id)
        if found is None:
            raise SessionError("session_not_found", f"no session {session_id[:64]!r}")
        return found

    def authenticate(self, key: str) -> Session | None:
        """The session a key opens, or None. The secret part is compared in constant time."""
        head, _, _ = key.removeprefix(KEY_PREFIX).partition("-")
        session = self._sessions.get(head)
        known = session.api_key if session else KEY_PREFIX
        matches = hmac.compare_digest(known.encode(), key.encode("utf-8", "surrogateescape"))
        return session if matches else None

    def set_reward(self, session_id: str, reward: Any, *, turn: int | str | None = None) -> None:
        """Set the session's final reward, or one turn's own (by index or completion id).

        ``reward`` is whatever `as_reward` takes. Raises SessionError(``session_not_found`` | ``turn_not_found`` |
        ``session_closed`` | ``bad_reward``).
        """
        session = self._open(session_id)
        try:
            value = as_reward(reward)
        except ValueError as error:
            raise SessionError("bad_reward", f"bad reward: {error}") from error
        if turn is None:
            session.final_reward = value
            return
        try:
            session.find_turn(turn).reward = value
        except KeyError as error:
            raise SessionError("turn_not_found", str(error.args[0])) from error

    def fault(self, session_id: str, *, raised: bool = False) -> InfrastructureFault | None:
        """Why the session's episode must not be scored, or None.

        It must not be scored when a request failed and no turn answers it (see `unanswered`), when no turn was sampled,
        and when the session is gone. ``raised``: the agent gave no reward but an exception; only failed requests can be
        its cause then, and no request that the client itself gave up.
        """
        session = self._sessions.get(session_id)
        if session is None:
            return InfrastructureFault("session", "gone", "the session was aborted, or idle for too long")
        faults = [request.fault or client_left() for request in unanswered(session)]
        # A client that gives up some requests because another one failed: the failure is the cause.
        faults.sort(key=lambda fault: fault.cause == "client_left")
        if faults and not (raised and faults[0].cause == "client_left"):
            return faults[0]
        if not raised and not session.turns:
            return InfrastructureFault("session", "no_turn", "the agent never got an answer of the policy")
        return None

    def export(self, session_id: str) -> tuple[Trajectory, ...]:
        """One row per leaf, main line first (see `export.export`). The session stays open.

        Raises SessionError(``session_not_found`` | ``session_closed``).
        """
        session = self.get(session_id)
        if session.aborted is not None:
            raise SessionError("session_closed", f"session {session_id} was aborted: {session.aborted}")
        return export(session)

    def export_json(self, session_id: str) -> list[dict[str, Any]]:
        """``export`` for outside programs, rewards shaped by the settings (see `export.outside_rows`)."""
        return outside_rows(
            self.export(session_id),
            invalid_format_penalty=self.settings.invalid_format_penalty,
            turn_discount=self.settings.turn_discount,
        )

    def close(self, session_id: str) -> None:
        """Take no more requests; rewards are final; the session can still be exported. Tells ``on_close``."""
        session = self._open(session_id)
        session.closed = True
        for listener in self.on_close:
            listener(session)

    def end(self, session_id: str) -> None:
        """Remove a session; its key becomes invalid."""
        self._forget(self.get(session_id), "ended")

    def abort(self, session_id: str, reason: str = "aborted") -> None:
        """Remove a session and cancel its running generations. Unknown sessions are ignored."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.aborted = reason
            self._forget(session, "aborted")

    def reap(self) -> list[str]:
        """Abort every session that was idle for ``idle_timeout`` seconds; returns their ids."""
        limit = self._clock() - self.settings.idle_timeout
        idle = [s for s in self._sessions.values() if s.last_used < limit and not s.in_flight]
        for session in idle:
            session.aborted = "idle"
            self._forget(session, "reaped")
        return [session.session_id for session in idle]

    def sessions(self) -> list[Session]:
        """Every open session, oldest first."""
        return list(self._sessions.values())

    def begin_call(self, session: Session) -> Request:
        """Note a running request. Raises SessionError(``session_closed``) when the session takes no more."""
        if session.closed:
            raise SessionError("session_closed", f"session {session.session_id} takes no more requests")
        if session.turns >= self.settings.max_turns:
            raise SessionError("session_closed", f"session {session.session_id} reached its {session.turns} turns")
        if (held := session.held_bytes) >= self.settings.max_bytes:
            limit = f"{held} bytes of messages and tokens; the limit is {self.settings.max_bytes}"
            raise SessionError("session_closed", f"session {session.session_id} holds {limit}")
        session.in_flight += 1
        session.last_used = self._clock()
        request = Request(session.turns)
        session.requests.append(request)
        return request

    def attach(self, session: Session, task: asyncio.Task[Any]) -> None:
        """Cancel ``task`` when the session is aborted before it is done."""
        tasks = self._tasks.setdefault(session.session_id, set())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def end_call(self, session: Session, request: Request) -> None:
        """The counterpart of ``begin_call``. A ``request`` with a fault stays noted, once however often it is sent."""
        session.in_flight -= 1
        session.last_used = self._clock()
        if request.fault is None:
            session.requests.remove(request)
        else:
            request.size = _json_bytes(request.messages)
            _forget_repeated(session, request)

    def refused(self, key: str, fault: InfrastructureFault) -> None:
        """Note that a request with ``key`` failed before its session took it. Keys of no session are ignored."""
        session = self.authenticate(key)
        if session is not None and not session.closed:
            request = Request(session.turns, fault=fault)
            session.requests.append(request)
            _forget_repeated(session, request)

    def _open(self, session_id: str) -> Session:
        session = self.get(session_id)
        if session.closed:
            raise SessionError("session_closed", f"session {session_id} is closed")
        return session

    def _forget(self, session: Session, why: str) -> None:
        del self._sessions[session.session_id]
        if why != "ended" and not session.closed:
            for listener in self.on_lost:
                listener(session, why)
        session.closed = True
        self.counters[why] += 1
        self.counters["branches"] += session.branches
        self.counters["turns"] += session.turns
        self.counters["invalid_format"] += sum(node.invalid_format for node in session.nodes)
        for task in self._tasks.pop(session.session_id, ()):
            # From another thread a task may only be cancelled through its loop.
            task.get_loop().call_soon_threadsafe(task.cancel)


def _json_bytes(messages: Sequence[Mapping[str, Any]] | None) -> int:
    try:
        return len(orjson.dumps(messages))
    except TypeError:  # of a caller in this process, whose messages are no JSON
        return 0


def _forget_repeated(session: Session, request: Request) -> None:
    """Forget the earlier failures of what ``request`` asks again: a client may retry for hours."""
    session.requests[:] = [
        one for one in session.requests if one is request or one.fault is None or not repeats(one, request)
    ]
