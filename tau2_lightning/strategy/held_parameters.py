"""The parameters of a model that one rank of a layout holds, counted from a model without memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tau2_lightning.config.allocation import ParallelSpec

from .families.family import Family
from .lora import LoRASettings, plan_adapters
from .rank_tables import expert_table


@dataclass(frozen=True)
class Held:
    """A rank's part of a parameter: ``count`` numbers, which FSDP cuts into ``shards``. Parameters of one ``unit`` are
    gathered together."""

    name: str
    unit: str
    count: int
    shards: int
    trained: bool


def held_parameters(
    model: Any, family: Family, spec: ParallelSpec, replicate: int = 1, lora: LoRASettings | None = None
) -> Iterator[Held]:
    """The parts of all parameters of ``model`` under ``spec``, whichever pipeline stage has them. Raises ConfigError
    when ``lora`` names layers that the model lacks."""
    shards = spec.d * spec.c // replicate
    rest = expert_table(spec, replicate).shape[2] if spec.e * spec.t > 1 else shards
    prefix = f"{family.parts.layers}."
    spread = family.experts.module if family.experts is not None else None
    split = {*family.tensor.columns, *family.tensor.rows} if family.tensor is not None else set()
    ends = {family.parts.embedding, family.parts.head}
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        inside = module.removeprefix(prefix).partition(".")[2] if name.startswith(prefix) else ""
        unit = ".".join(name.split(".")[: prefix.count(".") + 1]) if inside else "ends"
        experts = spread is not None and inside == spread and spec.e * spec.t > 1  # spread, and a unit of their own
        parts = spec.e if experts else spec.t if inside in split or module in ends else 1
        own = f"{unit} experts" if experts else unit
        yield Held(name, own, -(-parameter.numel() // parts), rest if experts else shards, trained=lora is None)
    if lora is not None:
        for name, (rows, columns) in plan_adapters(model, lora).shapes():
            parts = spec.t if _is_cut(name.removeprefix(prefix).partition(".")[2], family) else 1
            unit = ".".join(name.split(".")[: prefix.count(".") + 1])
            yield Held(name, unit, -(-rows * columns // parts), shards, trained=True)


def _is_cut(adapter: str, family: Family) -> bool:
    """Whether tensor ranks split this factor of an adapter, named within its layer: B of columns, and A of rows."""
    layer, _, factor = adapter.removesuffix(".weight").partition(".adapter.")
    if family.tensor is None:
        return False
    return layer in (family.tensor.columns if factor == "lora_B" else family.tensor.rows)


def owners(name: str, family: Family, layers: list[list[int]], ranks: int, *, tied: bool) -> set[int]:
    """The pipeline ranks that hold the parameter called ``name``. A tied embedding is also the head of the last
    rank."""
    prefix = f"{family.parts.layers}."
    if name.startswith(prefix):
        layer = int(name.removeprefix(prefix).partition(".")[0])
        return {stage % ranks for stage, held in enumerate(layers) if layer in held}
    if name.startswith(f"{family.parts.embedding}."):
        return {0, ranks - 1} if tied else {0}
    return {ranks - 1}


_models: dict[str, Any] = {}


def model_without_memory(config: Any) -> Any:
    """A causal LM of ``config`` on the meta device. The newest one is kept: a plan asks for it again and again."""
    from transformers import AutoModelForCausalLM

    text = f"{type(config).__name__} {config.to_json_string()}"
    if text not in _models:
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config)
        _models.clear()
        _models[text] = made
    return _models[text]
