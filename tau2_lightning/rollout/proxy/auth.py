"""Authentication: a key belongs to a session, a plain client, or the operator. Compared in constant time."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from dataclasses import dataclass

from fastapi import Request

from tau2_lightning.rollout.session.store import SessionStore
from tau2_lightning.rollout.session.tree import Session

from .errors import APIError
from .settings import ProxySettings

_TRACKED_KEYS = 4096


@dataclass(frozen=True)
class Caller:
    """``session`` is set for a session key; ``admin`` for the operator; neither for a plain client."""

    key: str
    session: Session | None = None
    admin: bool = False


class RateLimiter:
    """Token bucket per key: ``rate`` requests per second (0: no limit), in bursts of at most one second's requests, at
    least one."""

    def __init__(self, rate: float) -> None:
        self._rate, self._burst = rate, max(rate, 1.0)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, key: str, now: float | None = None) -> None:
        """Raises APIError 429 when ``key`` asks too often."""
        if self._rate <= 0:
            return
        now = time.monotonic() if now is None else now
        level, last = self._buckets.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - last) * self._rate)
        admitted = level >= 1.0
        self._buckets[key] = (level - 1.0 if admitted else level, now)
        if len(self._buckets) > _TRACKED_KEYS:
            self._buckets.popitem(last=False)
        if not admitted:
            raise APIError(429, "rate_limit_exceeded", f"more than {self._rate:g} requests a second with this key")


def bearer_key(request: Request) -> str:
    """The key of the header ``Authorization: Bearer KEY``; empty without one."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


class Authenticator:
    """Turns the key of a request, in HTTP its ``Authorization: Bearer`` header, into a Caller."""

    def __init__(self, store: SessionStore, settings: ProxySettings) -> None:
        self._store = store
        self._admin, self._client = settings.admin_key.encode(), settings.client_key.encode()
        self._limiter = RateLimiter(settings.rate_limit)

    def caller(self, request: Request) -> Caller:
        """The sender of ``request``. Raises APIError 401 without a bearer key, and as ``caller_with``."""
        if not (key := bearer_key(request)):
            raise APIError(401, "missing_api_key", "send 'Authorization: Bearer KEY'")
        return self.caller_with(key)

    def caller_with(self, key: str) -> Caller:
        """The owner of ``key``. Raises APIError 401 for an unknown key, 429 for one that calls too often."""
        raw = key.encode("utf-8", "surrogateescape")
        session = self._store.authenticate(key)
        admin, client = hmac.compare_digest(raw, self._admin), hmac.compare_digest(raw, self._client)
        if session is None and not admin and not client:
            raise APIError(401, "invalid_api_key", "this key opens nothing here, or its session has ended")
        self._limiter.admit(key)
        return Caller(key, session, admin)

    def admin(self, request: Request) -> Caller:
        """As ``caller``, for routes of the operator. Raises APIError 403 for any other valid key."""
        caller = self.caller(request)
        if not caller.admin:
            raise APIError(403, "admin_key_required", "this route needs the admin key")
        return caller

    def owner(self, request: Request, session_id: str) -> Session:
        """The session ``session_id``, for its own key or the admin key; 404 for every other valid key."""
        caller = self.caller(request)
        if caller.admin or (caller.session is not None and caller.session.session_id == session_id):
            return self._store.get(session_id)
        # The same answer as for a session that does not exist, so that it reveals nothing.
        raise APIError(404, "session_not_found", f"no session {session_id[:64]!r}")
