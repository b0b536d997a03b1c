"""What each device of a run needs at each time of a step, from the configuration and the model's config.json alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from tau2_lightning.config.allocation import Allocation, AllocationError, Component
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.cluster import placement_of, visible_gpus
from tau2_lightning.launch.placement import Placement
from tau2_lightning.policy.loading import describes_only, load_model_config
from tau2_lightning.policy.model_config import unbuildable
from tau2_lightning.rollout.chat.template import ChatFormatError
from tau2_lightning.rollout.engine.sleep_level import sleep_level
from tau2_lightning.strategy.families.registry import family_of
from tau2_lightning.strategy.fitting import why_not_shared
from tau2_lightning.strategy.held_parameters import model_without_memory
from tau2_lightning.strategy.lora import LoRASettings
from tau2_lightning.strategy.memory import Demand, RankMemory, memory_of_stages
from tau2_lightning.strategy.moments import FORMATS
from tau2_lightning.strategy.weights import BUCKET_BYTES

from .algorithm import instantiate_algorithm
from .forecast import kv_bytes_per_token
from .openings import openings_of

GIB = 2.0**30
#: A process on a GPU: CUDA's context, NCCL's buffers, and what the allocator cannot use.
RESERVE = 1.5 * GIB
#: An engine beside weights and cache: its context, CUDA graphs, and the activations of its largest step.
ENGINE_RESERVE = 2.0 * GIB
#: What is left on the GPU of an engine that sleeps.
ASLEEP = 1.0 * GIB
#: A process on a CPU beside its tensors.
PROCESS = 0.8 * GIB
#: Tokens of an opening prompt where no tokenizer is there: the policy and the tools of retail in Qwen3's template.
OPENING = 10_000
#: transformers' names of kinds of layers.
_FULL, _WINDOWED = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class EngineMemory:
    """One device of an engine, in bytes: its part of the ``weights``; the cache of one sequence of the longest length
    (``least_cache``) and of one token; ``share``: what it takes of the device, None where that is not known; ``given``:
    the size of its cache on a CPU, where it is a key."""

    weights: int
    least_cache: int
    token: int
    share: float | None
    given: float | None = None

    @property
    def least(self) -> float:
        """Less than this starts no engine."""
        return self.weights + self.least_cache + ENGINE_RESERVE

    @property
    def cache(self) -> float:
        """The cache of keys and values."""
        if self.given is not None:
            return self.given
        return self.least_cache if self.share is None else max(0.0, self.share - self.weights - ENGINE_RESERVE)

    @property
    def lacks(self) -> float:
        """What its cache lacks to hold one sequence of the longest length, without which it does not start."""
        if self.given is not None:
            return max(0.0, self.least_cache - self.given)
        return 0.0 if self.share is None else max(0.0, self.least - self.share)


@dataclass(frozen=True)
class DeviceMemory:
    """What the devices of one group of an allocation need, each of them. ``of``: the memory of one, None where it is
    not known. ``moments`` are bytes by time of a step, in words. ``together``: these are all processes of one
    machine, whose memory they share."""

    name: str
    devices: int
    of: float | None
    trainer: RankMemory | None
    engine: EngineMemory | None
    moments: dict[str, float]
    together: bool = False

    @property
    def needed(self) -> float:
        """The largest need of any time."""
        return max(self.moments.values())

    @property
    def fits(self) -> bool:
        """Whether it fits, as far as that is known."""
        too_little = self.engine is not None and self.engine.lacks > 0
        return not too_little and (self.of is None or self.needed <= self.of)


def known_memory(config: RunConfig, placement: Placement) -> float | None:
    """Bytes of a device: what ``cluster.gpu_memory_gib`` says, or the smallest GPU here, or this machine's memory for
    a run on its CPU; None for GPUs of other machines."""
    given = config.cluster.gpu_memory_gib
    if placement.on_cpu:
        return float(psutil.virtual_memory().total)
    if given is not None:
        return given * GIB
    count = visible_gpus(config) if config.scheduler.type == "local" else 0
    return min((float(torch.cuda.get_device_properties(i).total_memory) for i in range(count)), default=None)


def memory_of_devices(config: RunConfig, policy: Path | str) -> list[DeviceMemory]:
    """The memory of each group of devices of a run with the model at ``policy``.

    Empty for a model of no known family, and for what other checks refuse.
    """
    try:
        placement = placement_of(config)
        spec = placement.allocation.training_spec()
        model = load_model_config(policy)
        if family_of(model) is None or unbuildable(model) or spec.d * spec.c % config.actor.fsdp.replicate:
            return []
        demand = demand_of(config, policy, model, on_cpu=placement.on_cpu)
        trainer = max(memory_of_stages(model, spec, demand), key=lambda one: one.total)
    except (AllocationError, ConfigError, OSError, ValueError):
        return []
    memory = known_memory(config, placement)
    groups = [_Group(config, group, model, trainer, memory) for group in placement.allocation.groups]
    return _on_cpu(groups, placement.allocation, memory) if placement.on_cpu else [one.needs() for one in groups]


def demand_of(config: RunConfig, policy: Path | str, model: Any, *, on_cpu: bool) -> Demand:
    """What the trainer of ``config`` asks of memory."""
    a = config.actor
    prefix = shared_tokens(config, policy, model)
    # A row that is longer than the budget is a micro-batch of its own, and the prefix goes through the model by itself.
    tokens = max(a.max_tokens_per_mb, config.gconfig.max_tokens - prefix, prefix)
    return Demand(
        precision=a.precision,
        activation_checkpointing=a.activation_checkpointing,
        max_tokens_per_mb=tokens,
        schedule=a.schedule,
        replicate=a.fsdp.replicate,
        lora=LoRASettings.of(a.lora),
        base_dtype=a.lora.base_dtype,
        moments=FORMATS[a.optimizer.type],
        offload_optimizer=a.optimizer.offload,
        offload_params=a.fsdp.offload_params,
        activation_offloading=a.activation_offloading,
        prefix=prefix,
        reference=instantiate_algorithm(config).needs_reference,
        on_cpu=on_cpu,
        trains=config.mode == "train",
    )


def shared_tokens(config: RunConfig, policy: Path | str, model: Any) -> int:
    """Tokens with which all rows of a domain begin, and which are computed once for many micro-batches; 0 where they
    are computed anew."""
    a = config.actor
    if not (a.packing and a.enable_tree_training) or why_not_shared(model) is not None:
        return 0
    return common_opening(config, policy)


def common_opening(config: RunConfig, policy: Path | str) -> int:
    """Tokens with which all rows of a domain begin, at most the context."""
    least = min(OPENING, config.gconfig.max_tokens // 2)
    if not Path(policy).is_dir() or describes_only(policy) or config.rollout.workflow is not None:
        return least
    try:
        longest = max(opening.common for opening in openings_of(config, Path(policy)).values())
        return min(longest, config.gconfig.max_tokens)
    except (ChatFormatError, ConfigError):
        return least


@dataclass(frozen=True)
class _Group:
    """One group of devices of an allocation."""

    config: RunConfig
    components: tuple[Component, ...]
    model: Any
    rank: RankMemory
    memory: float | None

    def needs(self) -> DeviceMemory:
        trainer = self.rank if any(not one.generates for one in self.components) else None
        engine = next((self.engine(one) for one in self.components if one.generates), None)
        name = "|".join(map(str, self.components))
        moments = dict(self._times(trainer, engine))
        return DeviceMemory(name, self.components[0].world, self.memory, trainer, engine, moments)

    def engine(self, component: Component) -> EngineMemory | None:
        """One device of an engine; None for the user's, whose model is another one."""
        if component.name:
            return None
        c, t = self.config, component.spec.t
        size = 4 if c.actor.dtype == "float32" else 2
        numbers = sum(parameter.numel() for parameter in model_without_memory(self.model).parameters())
        token = (kv_bytes_per_token(self.model, c.actor.dtype) or 0) // t
        share = None if self.memory is None else c.rollout.gpu_memory_utilization * self.memory
        longest = sequence_cache(self.model, c.actor.dtype, c.gconfig.max_tokens) // t
        return EngineMemory(numbers * size // t, longest, token, share)

    def _times(self, trainer: RankMemory | None, engine: EngineMemory | None) -> Iterator[tuple[str, float]]:
        taken = 0.0 if engine is None else (engine.least if engine.share is None else engine.share)
        busy = busy_with(self.config)
        if trainer is None:
            yield "serving", taken
        elif engine is None:
            yield busy, trainer.total + RESERVE
        elif sleep_level(self.config) and self.config.mode == "train":
            yield "training beside a sleeping engine", trainer.total + RESERVE + ASLEEP
            yield "rollouts beside what the trainer keeps", trainer.resident + RESERVE + taken
            yield "weight sync", trainer.resident + RESERVE + engine.weights + ENGINE_RESERVE + 2 * BUCKET_BYTES
        else:
            yield f"{busy} beside the engine", trainer.total + RESERVE + taken


def sequence_cache(model: Any, dtype: str, length: int) -> int:
    """Bytes of the cache of one sequence of ``length`` tokens: layers with a window keep that many, layers of linear
    attention none. 0 for a configuration of which that is not known."""
    layers = getattr(model, "num_hidden_layers", None)
    per_layer = (kv_bytes_per_token(model, dtype) or 0) // (layers or 1)
    window = getattr(model, "sliding_window", None) or length
    kinds = getattr(model, "layer_types", None) or [_WINDOWED if window < length else _FULL] * (layers or 0)
    kept = {_FULL: length, _WINDOWED: min(window, length)}
    return per_layer * sum(kept.get(kind, 0) for kind in kinds)


def busy_with(config: RunConfig) -> str:
    """What the trainer does at the time when it needs most."""
    return "training" if config.mode == "train" else "log-probs of the trainer"


def _on_cpu(groups: list[_Group], allocation: Allocation, memory: float | None) -> list[DeviceMemory]:
    """All processes of this machine together."""
    needed, engines = 0.0, None
    for group in groups:
        for component in group.components:
            if not component.generates:
                needed += component.world * (group.rank.total + PROCESS)
            elif (one := group.engine(component)) is not None:
                kv = group.config.rollout.kv_cache_gib * GIB
                engines = replace(one, share=None, given=kv)
                needed += component.world * (one.weights + kv + PROCESS)
    name = f"{allocation}, all processes of this machine"
    moments = {f"{busy_with(groups[0].config)} beside the engine": needed}
    return [DeviceMemory(name, 1, memory, groups[0].rank, engines, moments, together=True)]
