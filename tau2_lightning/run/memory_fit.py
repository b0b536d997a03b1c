"""Refuses a run that cannot fit into the memory of its devices, and names the keys that would make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from tau2_lightning.config.allocation import Allocation
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import Violation
from tau2_lightning.launch.cluster import placement_of
from tau2_lightning.rollout.engine.sleep_level import can_sleep

from .device_memory import GIB, DeviceMemory, memory_of_devices
from .memory_words import engine_problem, parts_in_words

Words = Mapping[str, Any]
#: Micro-batches are not made smaller than this to save memory.
FEWEST_TOKENS = 4096
_SHOWN = 6


def check_memory(config: RunConfig, policy: Path | str) -> Iterator[Violation]:
    """One violation when a device needs more memory than it has, where that is known."""
    devices = memory_of_devices(config, policy)
    short = [one for one in devices if not one.fits]
    if not short:
        return
    worst = max(short, key=lambda one: (one.of is not None and one.needed > one.of, one.needed))
    key, value = "allocation_mode", config.allocation_mode
    if worst.engine is not None and worst.engine.lacks and (worst.of is None or worst.needed <= worst.of):
        r, on_cpu = config.rollout, worst.engine.given is not None
        key = "rollout.kv_cache_gib" if on_cpu else "rollout.gpu_memory_utilization"
        value = f"{r.kv_cache_gib if on_cpu else r.gpu_memory_utilization:g}"
    yield Violation(key, value, _problem(worst), _remedy(config, policy))


def _problem(one: DeviceMemory) -> str:
    if (short := engine_problem(one)) is not None and (one.of is None or one.needed <= one.of):
        return short
    assert one.of is not None
    time = max(one.moments, key=lambda name: one.moments[name])
    where = "this machine" if one.together else f"a GPU of {one.name}"
    parts = parts_in_words(one, time)
    return f"{where} needs {one.needed / GIB:.1f} GiB ({time}: {parts}), and has {one.of / GIB:.1f}"


def _remedy(config: RunConfig, policy: Path | str) -> str:
    tried = [(words, _need(config, policy, words)) for words in _levers(config, policy)]
    alone = [(words, need) for words, (need, lack) in tried if not lack]
    if alone:
        listed = ", ".join(f"{_as_words(words)} ({need / GIB:.1f} GiB)" for words, need in alone[:_SHOWN])
        return f"{'One of these makes' if len(alone) > 1 else 'This makes'} it fit: {listed}"
    together: dict[str, Any] = {}
    need, lack = _need(config, policy, together)
    # The levers that give most first; a later value of a key replaces an earlier one.
    for words, _ in sorted(tried, key=lambda one: one[1][1]):
        if "allocation_mode" in words or set(words) & set(together):
            continue
        less, missing = _need(config, policy, {**together, **words})
        if missing < lack:
            together |= words
            need, lack = less, missing
        if not lack:
            return f"Together these make it fit: {_as_words(together)} ({need / GIB:.1f} GiB)"
    least = f"with {_as_words(together)} it is {need / GIB:.1f} GiB" if together else "no key makes it smaller"
    return f"No key alone and not all together make it fit ({least}): give it more or larger GPUs"


def _levers(config: RunConfig, policy: Path | str) -> Iterator[Words]:
    """Settings that take less memory than those of ``config``, cheapest in time first."""
    a, on_cpu = config.actor, placement_of(config).on_cpu
    if config.mode == "validate":  # nothing is trained, and adapters would be another policy
        yield from _for_the_engine(config, policy)
        yield from _more_gpus(config)
        return
    if a.activation_checkpointing != "full":
        yield {"actor.activation_checkpointing": "full"}
    tokens = a.max_tokens_per_mb // 2
    while tokens >= FEWEST_TOKENS:
        yield {"actor.max_tokens_per_mb": tokens}
        tokens //= 2
    yield from _for_the_engine(config, policy)
    if a.lora.r and a.lora.base_dtype == "float32" and a.precision == "bf16":
        yield {"actor.lora.base_dtype": "bfloat16"}
    for kind in ("adam_bf16", "adam_8bit"):
        if a.optimizer.type not in (kind, "adam_8bit"):
            yield {"actor.optimizer.type": kind}
    if not on_cpu:
        yield from _to_the_host(config)
    if not a.lora.r:
        narrow = {"actor.lora.base_dtype": "bfloat16"} if a.precision == "bf16" else {}
        yield {"actor.lora.r": 32, **narrow}
    yield from _more_gpus(config)


def _for_the_engine(config: RunConfig, policy: Path | str) -> Iterator[Words]:
    sleeps = can_sleep(config) is None
    if sleeps and config.rollout.sleep_level == 0:
        yield {"rollout.sleep_level": "null"}
    yield from _for_a_sequence(config, policy)
    if not placement_of(config).on_cpu:
        yield from ({"rollout.gpu_memory_utilization": share} for share in (0.6, 0.45, 0.3) if share < _share(config))
        yield from ({"rollout.gpu_memory_utilization": share} for share in (0.7, 0.9) if share > _share(config))


def _for_a_sequence(config: RunConfig, policy: Path | str) -> Iterator[Words]:
    """Room for one sequence in an engine that has none: a larger cache, or the longest sequence that its cache has."""
    lacking = [one.engine for one in memory_of_devices(config, policy) if one.engine is not None and one.engine.lacks]
    for engine in lacking[:1]:
        if engine.given is not None:
            yield {"rollout.kv_cache_gib": ceil(10 * engine.least_cache / GIB) / 10}
        if engine.cache and engine.least_cache:
            longest = int(config.gconfig.max_tokens * engine.cache / engine.least_cache) // 128 * 128
            if longest > config.gconfig.max_new_tokens:
                yield {"gconfig.max_tokens": longest}


def _to_the_host(config: RunConfig) -> Iterator[Words]:
    a = config.actor
    if not a.optimizer.offload and not a.fsdp.offload_params:
        yield {"actor.optimizer.offload": True}
    if not a.activation_offloading:
        yield {"actor.activation_offloading": True}
    if not a.fsdp.offload_params and a.precision == "bf16":
        yield {"actor.fsdp.offload_params": True}


def _more_gpus(config: RunConfig) -> Iterator[Words]:
    """Twice as many data ranks, where the trainer has its GPUs for itself."""
    allocation = Allocation.parse(config.allocation_mode)
    trainer = allocation.training
    if trainer is None or trainer.ffn is not None or placement_of(config).on_cpu:
        return
    if any(trainer in group and len(group) > 1 for group in placement_of(config).allocation.groups):
        return
    wider = replace(trainer, spec=replace(trainer.spec, d=2 * trainer.spec.d))
    groups = tuple(tuple(wider if one == trainer else one for one in group) for group in allocation.groups)
    yield {"allocation_mode": str(Allocation(groups))}


def _share(config: RunConfig) -> float:
    return config.rollout.gpu_memory_utilization


def _need(config: RunConfig, policy: Path | str, words: Words) -> tuple[float, float]:
    """The largest need of a device with ``words`` changed, and the bytes that devices and engines lack then."""
    for key, value in words.items():
        config = changed(config, key, None if value == "null" else value)
    if "allocation_mode" in words:  # on as many GPUs as it needs
        cluster = config.cluster.model_copy(update={"n_nodes": 1, "n_gpus_per_node": _world(config)})
        config = config.model_copy(update={"cluster": cluster})
    devices = memory_of_devices(config, policy)
    if not devices:
        return float("inf"), float("inf")
    lack = sum(max(0.0, one.needed - (one.of or one.needed)) for one in devices)
    lack += sum(one.engine.lacks for one in devices if one.engine is not None)
    return max(one.needed for one in devices), lack


def _world(config: RunConfig) -> int:
    return Allocation.parse(config.allocation_mode).world


def changed(section: Any, key: str, value: object) -> Any:
    """A copy of ``section`` with the dotted ``key`` changed; the value is not checked again."""
    head, _, rest = key.partition(".")
    new = changed(getattr(section, head), rest, value) if rest else value
    return section.model_copy(update={head: new})


def _as_words(words: Words) -> str:
    return " ".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in words.items())
