"""Marks a session as busy while one request runs (HTTP or in-process), and notes whether it was answered."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from tau2_lightning.rollout.session.requests import Request
from tau2_lightning.rollout.session.store import SessionStore
from tau2_lightning.rollout.session.tree import Session

from .errors import APIError, fault_behind
from .meter import client_gone

T = TypeVar("T")


class SessionCall:
    """Keeps ``session`` (None: a plain client) busy from ``begin`` to ``end``; an abort of it ends the work."""

    def __init__(self, store: SessionStore, session: Session | None) -> None:
        self._store, self._session = store, session
        self._request: Request | None = None

    def begin(self) -> None:
        """Raises SessionError(``session_closed``) when the session takes no more requests."""
        if self._session is not None:
            self._request = self._store.begin_call(self._session)

    def asks(self, messages: Sequence[Mapping[str, Any]], completion_id: str) -> None:
        """The request has been read: it asks for an answer to ``messages``, which gets ``completion_id``."""
        if self._request is not None:
            self._request.completion_id = completion_id
            self._request.messages = list(messages)  # the caller in this process may go on with its list

    def failed(self, error: BaseException) -> None:
        """Note why the request gets no answer, before its client hears of it."""
        if self._request is not None:
            self._request.fault = fault_behind(error)

    def end(self, error: BaseException | None = None) -> None:
        """The counterpart of ``begin``; ``error``: why there is no answer."""
        if error is not None:
            self.failed(error)
        if self._session is not None and self._request is not None:
            self._store.end_call(self._session, self._request)

    def attach(self, task: asyncio.Task[Any]) -> None:
        """Cancel ``task`` when the session is aborted."""
        if self._session is not None:
            self._store.attach(self._session, task)

    async def finished(self, work: Coroutine[Any, Any, T], gone: asyncio.Task[Any] | None = None) -> T:
        """The result of ``work``. It is cancelled, and the engine aborts it, in three cases: its caller is cancelled,
        the session is aborted, or ``gone`` is done because the client has left.

        Raises APIError 409 for an aborted session, 499 for a client that left.
        """
        task = asyncio.get_running_loop().create_task(work)
        self.attach(task)
        if gone is not None:
            # Not `asyncio.wait`: its checks of both arguments take a tenth of a short call.
            gone.add_done_callback(lambda _: task.cancel())
        try:
            return await task
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if own is not None and own.cancelling():
                raise
            if gone is not None and gone.done():
                raise client_gone() from None
            raise APIError(409, "session_aborted", "the session was aborted") from None
        finally:
            task.cancel()
