"""Counting, timing and limiting requests, the same for those that come over HTTP and those from this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import APIError
from .metrics import ProxyMetrics

CLIENT_GONE = 499  # nginx's status for a client that left; only for counting, it is never sent


def client_gone() -> APIError:
    """The end of a request whose client left."""
    return APIError(CLIENT_GONE, "client_disconnected", "the client went away")


@dataclass
class Measured:
    """One running request: the route that it is counted under, the HTTP status of its answer, and the bytes of its body
    that were read."""

    route: str
    status: int = 500
    body_bytes: int = 0


class RequestMeter:
    """Measures every request; at most ``max_concurrent`` run simultaneously, with bodies of ``max_bytes`` together."""

    def __init__(self, metrics: ProxyMetrics, max_concurrent: int, max_bytes: int) -> None:
        self._metrics, self._limit, self._max_bytes = metrics, max_concurrent, max_bytes
        self._at_work = self._held = 0

    @contextmanager
    def measure(self, route: str) -> Iterator[Measured]:
        """Count the work inside as one request. The caller sets the answer's status on the yielded object."""
        request = Measured(route)
        began = time.perf_counter()
        self._at_work += 1
        self._metrics.in_flight.set(self._at_work)
        try:
            yield request
        finally:
            self._at_work -= 1
            self._held -= request.body_bytes
            self._metrics.in_flight.set(self._at_work)
            self._metrics.held_bytes.set(self._held)
            self._metrics.requests.labels(request.route, str(request.status)).inc()
            self._metrics.seconds.labels(request.route).observe(time.perf_counter() - began)

    def takes(self, request: Measured, size: int) -> None:
        """``request`` has brought ``size`` bytes of its body. Raises APIError 503 when all bodies together are too
        large."""
        request.body_bytes += size
        self._held += size
        self._metrics.held_bytes.set(self._held)
        if self._held > self._max_bytes:
            raise APIError(503, "overloaded", f"the requests at work hold {self._max_bytes} bytes, the limit here")

    def admit(self) -> None:
        """Raises APIError 503 when the measured request exceeds ``max_concurrent``."""
        if self._at_work > self._limit:
            raise APIError(503, "overloaded", f"{self._limit} requests are at work, the limit of this proxy")
