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
    """One running request: the route that it is counted under, and the HTTP status of its answer."""

    route: str
    status: int = 500


class RequestMeter:
    """Measures every request; at most ``max_concurrent`` run simultaneously."""

    def __init__(self, metrics: ProxyMetrics, max_concurrent: int) -> None:
        self._metrics, self._limit = metrics, max_concurrent
        self._at_work = 0

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
            self._metrics.in_flight.set(self._at_work)
            self._metrics.requests.labels(request.route, str(request.status)).inc()
            self._metrics.seconds.labels(request.route).observe(time.perf_counter() - began)

    def admit(self) -> None:
        """Raises APIError 503 when the measured request exceeds ``max_concurrent``."""
        if self._at_work > self._limit:
            raise APIError(503, "overloaded", f"{self._limit} requests are at work, the limit of this proxy")
