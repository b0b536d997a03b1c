"""Prometheus metrics of the proxy; each proxy has its own registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tau2_lightning.rollout.session.store import SessionStore

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _Sessions(Collector):
    def __init__(self, store: SessionStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """The session counts of this moment."""
        yield GaugeMetricFamily("proxy_sessions_open", "Sessions that are open", value=len(self._store))
        total = CounterMetricFamily("proxy_sessions", "Session events", labels=["event"])
        for event in ("started", "ended", "aborted", "reaped", "branches", "turns", "invalid_format"):
            total.add_metric([event], self._store.counters[event])
        yield total


class _Held(Collector):
    def __init__(self, caches: Callable[[], Mapping[str, int]]) -> None:
        self._caches = caches

    def collect(self) -> Iterator[Metric]:
        """The bytes of this moment."""
        held = GaugeMetricFamily("proxy_cache_bytes", "Bytes that a cache holds; each is bounded", labels=["cache"])
        for name, size in self._caches().items():
            held.add_metric([name], size)
        yield held


class ProxyMetrics:
    """Counts requests by route and status, sampled tokens, finish reasons and malformed calls. ``caches`` tells how
    many bytes each cache holds."""

    def __init__(self, store: SessionStore, caches: Callable[[], Mapping[str, int]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Sessions(store))
        self.registry.register(_Held(caches))
        self.requests = Counter("proxy_requests", "Requests", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "proxy_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("proxy_in_flight", "Requests at work", registry=self.registry)
        self.held_bytes = Gauge("proxy_body_bytes", "Bodies of the requests at work, in bytes", registry=self.registry)
        self.disconnects = Counter("proxy_client_disconnects", "Clients that went away", registry=self.registry)
        self._tokens = Counter("proxy_sampled_tokens", "Tokens sampled", registry=self.registry)
        self._finished = Counter("proxy_completions", "Choices sampled", ["finish_reason"], registry=self.registry)
        self._invalid = Counter("proxy_invalid_format", "Tool calls that could not be read", registry=self.registry)

    def completion(self, tokens: int, finish_reason: str, invalid_format: bool) -> None:
        """Count one sampled choice."""
        self._tokens.inc(tokens)
        self._finished.labels(finish_reason).inc()
        if invalid_format:
            self._invalid.inc()

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)
