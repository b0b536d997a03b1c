"""The engines' own numbers about their load (``/metrics``): key-value cache, queue and prefix cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

GAUGES: Mapping[str, str] = {
    "vllm:kv_cache_usage_perc": "kv_usage",
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "queue",
    "sglang:token_usage": "kv_usage",
    "sglang:num_running_reqs": "running",
    "sglang:num_queue_reqs": "queue",
}
COUNTERS: Mapping[str, str] = {
    "vllm:prefix_cache_queries_total": "prefix_queries",
    "vllm:prefix_cache_hits_total": "prefix_hits",
    "vllm:num_preemptions_total": "preemptions",
    "sglang:prompt_tokens_total": "prefix_queries",
    "sglang:cached_tokens_total": "prefix_hits",
    "sglang:num_retracted_requests_total": "preemptions",
}


@dataclass(frozen=True)
class EngineReading:
    """The numbers of one server at one time.

    ``gauges``: ``kv_usage`` in [0, 1], ``running`` and ``queue`` in requests. ``counters`` since the server's start:
    ``prefix_queries`` and ``prefix_hits`` in tokens of prompts, ``preemptions`` in requests.
    """

    gauges: Mapping[str, float]
    counters: Mapping[str, float]


def read_metrics(text: str) -> EngineReading | None:
    """Read numbers in Prometheus' text format; None if no engine's are among them."""
    gauges: dict[str, float] = {}
    counters: dict[str, float] = {}
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except (ValueError, KeyError, IndexError):  # no such text
        return None
    for sample in samples:
        if name := GAUGES.get(sample.name):
            gauges[name] = gauges.get(name, 0.0) + sample.value
        elif name := COUNTERS.get(sample.name):
            counters[name] = counters.get(name, 0.0) + sample.value
    return EngineReading(gauges, counters) if gauges else None


class EngineLoad:
    """The readings of one server since the last ``take``."""

    def __init__(self) -> None:
        self._readings: list[EngineReading] = []
        self._before: EngineReading | None = None

    def add(self, reading: EngineReading) -> None:
        """Add one reading."""
        self._before = self._before or reading
        self._readings.append(reading)

    def take(self) -> dict[str, float]:
        """The numbers since the last call; empty without a reading.

        These are ``<name>/mean`` and ``<name>/max`` of ``kv_usage``, ``running`` and ``queue``; ``prefix_hit_rate``,
        the share of the prompts' tokens that were in the cache; and ``preemptions``.
        """
        readings, before = self._readings, self._before
        self._readings, self._before = [], readings[-1] if readings else before
        if not readings or before is None:
            return {}
        found: dict[str, float] = {}
        for name in dict.fromkeys(GAUGES.values()):
            values = [reading.gauges[name] for reading in readings if name in reading.gauges]
            if values:
                found |= {f"{name}/mean": sum(values) / len(values), f"{name}/max": max(values)}
        grown = {name: _grown(before, readings[-1], name) for name in COUNTERS.values()}
        if grown["prefix_queries"]:
            found["prefix_hit_rate"] = grown["prefix_hits"] / grown["prefix_queries"]
        return found | {"preemptions": grown["preemptions"]}


def _grown(before: EngineReading, now: EngineReading, name: str) -> float:
    """The growth of a counter; a restarted server counts from 0 again."""
    old, new = before.counters.get(name, 0.0), now.counters.get(name, 0.0)
    return new - old if new >= old else new


def over_engines(loads: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Numbers over all engines under ``engine/``: the mean of means and rates, the largest maximum, the sum of
    preemptions. If there are several engines, also the numbers of each one under ``engine/<number>/``.
    """
    together: defaultdict[str, list[float]] = defaultdict(list)
    for load in loads.values():
        for name, value in load.items():
            together[name].append(value)
    found = {}
    for name, values in together.items():
        if name == "preemptions":
            found[f"engine/{name}"] = sum(values)
        else:
            found[f"engine/{name}"] = max(values) if name.endswith("/max") else sum(values) / len(values)
    if len(loads) > 1:
        for number, load in loads.items():
            found |= {f"engine/{number}/{name}": value for name, value in load.items()}
    return found
