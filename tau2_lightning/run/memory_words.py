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
    training = time.startswith("training")
    if t is not None:
        yield "weights", t.weights
        if training:
            yield "gradients", t.gradients
        yield "optimizer", t.optimizer
        yield "reference", t.reference
        if training:
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
        verdict = f"{'fits into' if one.fits else 'DOES NOT FIT into'} {one.of / GIB:.1f} GiB"
    engine = one.engine
    if engine is not None and engine.token:
        verdict += f"; an engine's cache there holds {engine.cache / engine.token:,.0f} tokens"
    yield f"memory of {where}: {one.needed / GIB:.1f} GiB; {verdict}"
    yield from (f"  {time}: {size / GIB:.1f} GiB = {parts_in_words(one, time)}" for time, size in one.moments.items())
