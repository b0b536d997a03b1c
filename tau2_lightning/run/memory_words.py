"""The memory of devices in words."""

from __future__ import annotations

from collections.abc import Iterator

from tau2_lightning.strategy.weights import BUCKET_BYTES

from .device_memory import ASLEEP, ENGINE_RESERVE, GIB, RESERVE, DeviceMemory


def parts_in_words(one: DeviceMemory, time: str) -> str:
    """The parts of what a device needs at a time of a step, in GiB."""
    parts = list(_parts(one, time))
    if one.together:
        parts.append(("the processes, and further ranks", one.moments[time] - sum(size for _, size in parts)))
    return " + ".join(f"{name} {size / GIB:.1f}" for name, size in parts if size >= 0.05 * GIB)


def _parts(one: DeviceMemory, time: str) -> Iterator[tuple[str, float]]:
    t, e = one.trainer, one.engine
    training, computing = time.startswith("training"), time.startswith(("training", "log-probs"))
    if t is not None:
        yield "weights", t.weights
        if training:
            yield "gradients", t.gradients
        yield "optimizer", t.optimizer
        yield "reference", t.reference
        if computing:
            yield "gathered", t.gathered
            yield "kept keys of shared prefixes", t.prefix
            yield "activations", t.activations
            yield ("logits", t.logits) if t.logits > t.working else ("the layer that computes", t.working)
        if not one.together:
            yield "reserve", RESERVE
    if e is None:
        return
    if time.endswith("sleeping engine"):
        yield "engine asleep", ASLEEP
        return
    yield "engine's weights", e.weights
    yield ("weights on their way", 2 * BUCKET_BYTES) if time == "weight sync" else ("engine's cache", e.cache)
    yield "engine's reserve", 0 if one.together else ENGINE_RESERVE


def engine_problem(one: DeviceMemory) -> str | None:
    """Why the engine has no room for one sequence, with the key that gives it room; None where it has."""
    e = one.engine
    if e is None or not e.lacks:
        return None
    sequence = f"cache of one sequence of gconfig.max_tokens {e.least_cache / GIB:.1f}"
    if e.given is not None:
        return f"the engine's cache has rollout.kv_cache_gib={e.given / GIB:g} GiB, and needs the {sequence}"
    needs = f"{e.least / GIB:.1f} GiB of a GPU (weights {e.weights / GIB:.1f}, {sequence})"
    share = (e.share or 0.0) / GIB
    return f"the engine of {one.name} needs {needs}, but rollout.gpu_memory_utilization gives it {share:.1f}"


def memory_lines_of(devices: list[DeviceMemory]) -> list[str]:
    """For each group of devices a line with the largest need, and one for each time of a step; what the host holds."""
    lines = [line for one in devices for line in _lines(one)]
    host = sum(one.devices * one.trainer.host for one in devices if one.trainer is not None)
    if host:
        lines.append(f"memory of the hosts: {host / GIB:.1f} GiB of what the trainer's GPUs do not keep, pinned")
    return lines


def _lines(one: DeviceMemory) -> Iterator[str]:
    where = one.name if one.together else f"each of the {one.devices} GPU(s) of {one.name}"
    verdict = "the memory of these GPUs is not known here: set cluster.gpu_memory_gib"
    if one.of is not None:
        verdict = f"{'fits into' if one.needed <= one.of else 'DOES NOT FIT into'} {one.of / GIB:.1f} GiB"
    engine = one.engine
    if (short := engine_problem(one)) is not None:
        verdict = f"DOES NOT FIT: {short}"
    if engine is not None and engine.token:
        verdict += f"; an engine's cache there holds {engine.cache / engine.token:,.0f} tokens"
    yield f"memory of {where}: {one.needed / GIB:.1f} GiB; {verdict}"
    yield from (f"  {time}: {size / GIB:.1f} GiB = {parts_in_words(one, time)}" for time, size in one.moments.items())
