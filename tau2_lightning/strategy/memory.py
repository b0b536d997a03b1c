"""The memory that the trainer needs on a GPU, computed before anything starts from a model's configuration alone.

Weights, gradients and Adam's moments are counted exactly, parameter by parameter. Activations are an estimate: the
inputs of layers that are kept, one layer that is computed again, and the logits of one part of the labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tau2_lightning.config.allocation import ParallelSpec

from .balance import TRAINED, head_load, layers_of_stages
from .families.family import Family
from .families.registry import family_of
from .lora import LoRASettings, plan_adapters
from .model import LOGITS_BYTES, is_tied
from .pipeline import stages_per_rank
from .rank_tables import expert_table

_STATE = 16  # bytes of a trained parameter: weight, gradient and Adam's two moments, float32 each
_WIDE = 4  # bytes of float32


@dataclass(frozen=True)
class Demand:
    """The settings that decide the memory, besides the model and the layout; names are those of the section
    ``actor``."""

    precision: str = "bf16"
    activation_checkpointing: str = "full"
    max_tokens_per_mb: int = 32768
    schedule: str = "1F1B"
    replicate: int = 1
    lora: LoRASettings | None = None

    @property
    def narrow(self) -> int:
        """Bytes of one number in the computation."""
        return 2 if self.precision == "bf16" else _WIDE


@dataclass(frozen=True)
class RankMemory:
    """Memory of one rank of a pipeline stage, in bytes. ``parameters`` is the number of parameters in its part of the
    model, before FSDP shards them.

    ``state``: weights, gradients and Adam's moments of its own shard, in float32. ``gathered``: weights gathered from
    other ranks, and under a pipeline also gradients that are not sharded yet. ``activations``: an estimate.
    """

    stage: int
    parameters: int
    state: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        return self.state + self.gathered + self.activations


def memory_of_stages(config: Any, spec: ParallelSpec, demand: Demand) -> list[RankMemory]:
    """The memory of a rank of each pipeline stage, for a transformers configuration of a known family.

    Raises ConfigError when ``demand.lora`` names layers that the model lacks, ValueError for an unknown family.
    """
    family = family_of(config)
    if family is None:
        raise ValueError(f"{config.model_type} is of no known family")
    own = [list[_Held]() for _ in range(spec.p)]
    stages = spec.p * (stages_per_rank(demand.schedule) if spec.p > 1 else 1)
    layers = layers_of_stages(config.num_hidden_layers, stages, head_load(config, family))
    for held in _parameters(config, family, spec, demand):
        for stage in _owners(held.name, family, layers, spec.p, tied=is_tied(config)):
            own[stage].append(held)
    return [_of_stage(stage, own[stage], config, family, spec, demand, layers) for stage in range(spec.p)]


@dataclass(frozen=True)
class _Held:
    """A rank's part of a parameter: ``count`` numbers, which FSDP cuts into ``shards``. Parameters of one ``unit`` are
    gathered together."""

    name: str
    unit: str
    count: int
    shards: int
    trained: bool


def _parameters(config: Any, family: Family, spec: ParallelSpec, demand: Demand) -> Iterator[_Held]:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shards = spec.d * spec.c // demand.replicate
    rest = expert_table(spec, demand.replicate).shape[2] if spec.e * spec.t > 1 else shards
    prefix = f"{family.parts.layers}."
    spread = family.experts.module if family.experts is not None else None
    split = {*family.tensor.columns, *family.tensor.rows} if family.tensor is not None else set()
    ends = {family.parts.embedding, family.parts.head}
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        inside = module.removeprefix(prefix).partition(".")[2] if name.startswith(prefix) else ""
        unit = ".".join(name.split(".")[: prefix.count(".") + 1]) if inside else "ends"
        experts = spread is not None and inside == spread
        parts = spec.e if experts else spec.t if inside in split or module in ends else 1
        # Experts are a unit of their own where they are spread.
        yield _Held(
            name, f"{unit} experts" if experts else unit, -(-parameter.numel() // parts), rest if experts else shards,
            trained=demand.lora is None,
        )  # fmt: skip
    if demand.lora is not None:
        for name, (rows, columns) in plan_adapters(model, demand.lora).shapes():
            parts = spec.t if _is_cut(name.removeprefix(prefix).partition(".")[2], family) else 1
            yield _Held(name, "adapters", -(-rows * columns // parts), shards, trained=True)


def _is_cut(adapter: str, family: Family) -> bool:
    """Whether tensor ranks split this factor of an adapter, named within its layer: B of columns, and A of rows."""
    layer, _, factor = adapter.removesuffix(".weight").partition(".adapter.")
    if family.tensor is None:
        return False
    return layer in (family.tensor.columns if factor == "lora_B" else family.tensor.rows)


def _owners(name: str, family: Family, layers: list[list[int]], ranks: int, *, tied: bool) -> set[int]:
    """The pipeline ranks that hold the parameter called ``name``. A tied embedding is also the head of the last
    rank."""
    prefix = f"{family.parts.layers}."
    if name.startswith(prefix):
        layer = int(name.removeprefix(prefix).partition(".")[0])
        return {stage % ranks for stage, held in enumerate(layers) if layer in held}
    if name.startswith(f"{family.parts.embedding}."):
        return {0, ranks - 1} if tied else {0}
    return {ranks - 1}


def _of_stage(
    stage: int,
    own: list[_Held],
    config: Any,
    family: Family,
    spec: ParallelSpec,
    demand: Demand,
    layers: list[list[int]],
) -> RankMemory:
    state = sum(-(-held.count // held.shards) * (_STATE if held.trained else _WIDE) for held in own)
    whole = sum(held.count for held in own)
    trained = sum(held.count for held in own if held.trained)
    cut = any(held.shards > 1 for held in own)
    if not cut and demand.precision == "fp32":
        gathered = 0
    elif spec.p > 1:  # weights stay gathered, and gradients of all micro-batches are summed before FSDP shards them
        gathered = whole * demand.narrow + trained * _WIDE
    elif cut:  # one unit computes, the next one is gathered, and the gradient of another one is sharded
        units: dict[str, int] = {}
        for held in own:
            units[held.unit] = units.get(held.unit, 0) + held.count
        gathered = 3 * max(units.values()) * demand.narrow
    else:
        gathered = whole * demand.narrow
    mine = sum(len(held) for index, held in enumerate(layers) if index % spec.p == stage)
    waiting = spec.p - stage if spec.p > 1 else 1  # micro-batches between their forward and their backward under 1F1B
    activations = _activations(config, family, spec, demand, mine, waiting, last=stage == spec.p - 1)
    return RankMemory(stage, whole, state, gathered, activations)


def _activations(
    config: Any, family: Family, spec: ParallelSpec, demand: Demand, layers: int, waiting: int, *, last: bool
) -> int:
    tokens = demand.max_tokens_per_mb // spec.c
    residual: int = tokens // spec.t * config.hidden_size * demand.narrow
    # Outputs of the linear layers, which t splits by features, and about six tensors of the residual's size.
    layer = int(tokens * family.layer_products(config) / spec.t) * demand.narrow + 6 * residual
    kept = {"full": residual, "selective": (residual + layer) // 2, "none": layer}[demand.activation_checkpointing]
    logits = int(TRAINED * tokens * config.vocab_size / spec.t) * demand.narrow if last else 0
    logits = 3 * min(logits, LOGITS_BYTES)  # those of one part of the labels, their gradient, float32 temporaries
    return waiting * layers * kept + max(layer, logits)
