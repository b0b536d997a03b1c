"""The memory that the trainer needs on a device, computed before anything starts from a model's configuration alone.

Weights, gradients and moments are counted exactly, parameter by parameter. Activations are what a layer saves for
backward (`activation_memory`), the layer that is computed again, and the logits of one part of the labels.
docs/memory.md shows the arithmetic.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch

from tau2_lightning.config.allocation import ParallelSpec

from .activation_memory import LayerCost, layer_cost
from .balance import TRAINED, head_load, layers_of_stages
from .families.family import Family
from .families.registry import family_of
from .held_parameters import Held, held_parameters, model_without_memory, owners
from .lora import LoRASettings
from .model import LOGITS_BYTES, is_tied
from .moments import BLOCK, SMALLEST, MomentFormat
from .pipeline import stages_per_rank

_WIDE = 4  # bytes of float32
#: Float32 temporaries of the log-probs of one part of the labels on a GPU.
_SLICE_BYTES = 3 * _WIDE << 25
#: Tensors as wide as the widest of a layer that exist in the middle of its backward pass.
_IN_BACKWARD = 3


@dataclass(frozen=True)
class Demand:
    """The settings that decide the memory, besides the model and the layout. Most are keys of the section ``actor``.

    ``trains=False``: log-probs are computed, and nothing is trained. ``on_cpu``: the trainer is on a CPU. ``prefix`` is
    the number of tokens whose keys and values are kept for many micro-batches. ``reference``: a second set of weights
    is kept for a KL term.
    """

    precision: str = "bf16"
    activation_checkpointing: str = "full"
    max_tokens_per_mb: int = 32768
    schedule: str = "1F1B"
    replicate: int = 1
    lora: LoRASettings | None = None
    base_dtype: str = "float32"
    moments: MomentFormat = "float32"
    offload_optimizer: bool = False
    offload_params: bool = False
    activation_offloading: bool = False
    prefix: int = 0
    reference: bool = False
    on_cpu: bool = False
    trains: bool = True

    @property
    def narrow(self) -> int:
        """Bytes of one number in the computation."""
        return 2 if self.precision == "bf16" else _WIDE

    @property
    def frozen(self) -> int:
        """Bytes of a frozen weight."""
        return 2 if self.base_dtype == "bfloat16" else _WIDE

    def moment_bytes(self, count: int) -> float:
        """Bytes of the two moments of one number of a parameter of ``count`` numbers."""
        if self.moments == "bfloat16":
            return 4.0
        return 2.0 + 2 * _WIDE / BLOCK if self.moments == "8bit" and count >= SMALLEST else 8.0


@dataclass(frozen=True)
class RankMemory:
    """Memory of one rank of a pipeline stage, in bytes. ``parameters`` is the number of parameters in its part of the
    model, before FSDP shards them.

    ``weights``, ``gradients``, ``optimizer``, ``reference``: of its own shard. ``gathered``: what other ranks hold of
    the parameters, and gradients that are not sharded yet. ``activations``: kept between forward and backward.
    ``working``: of the layer that computes. ``logits``: of one part of the labels. ``prefix``: keys, values and their
    gradients of a shared prefix. ``host``: in the host's memory instead. Working memory and logits exist at different
    times, and the ends of the model are gathered for the last time (``ends``) when activations are gone.
    """

    stage: int
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    working: int = 0
    logits: int = 0
    prefix: int = 0
    reference: int = 0
    ends: int = 0
    host: int = 0

    @property
    def state(self) -> int:
        """Weights, gradients and moments."""
        return self.weights + self.gradients + self.optimizer

    @property
    def resident(self) -> int:
        """What stays between two training steps."""
        return self.weights + self.optimizer + self.reference

    @property
    def total(self) -> int:
        """The peak of a training step."""
        in_layers = self.gathered + self.activations + max(self.working, self.logits)
        return self.state + self.reference + self.prefix + max(in_layers, self.ends)


def memory_of_stages(config: Any, spec: ParallelSpec, demand: Demand) -> list[RankMemory]:
    """The memory of a rank of each pipeline stage, for a transformers configuration of a known family.

    Raises ConfigError when ``demand.lora`` names layers that the model lacks, ValueError for an unknown family.
    """
    family = family_of(config)
    if family is None:
        raise ValueError(f"{config.model_type} is of no known family")
    model = model_without_memory(config)
    own = [list[Held]() for _ in range(spec.p)]
    stages = spec.p * (stages_per_rank(demand.schedule) if spec.p > 1 else 1)
    layers = layers_of_stages(config.num_hidden_layers, stages, head_load(config, family))
    for held in held_parameters(model, family, spec, demand.replicate, demand.lora):
        for stage in owners(held.name, family, layers, spec.p, tied=is_tied(config)):
            own[stage].append(held)
    cost = layer_cost(model, torch.bfloat16 if demand.narrow == 2 else torch.float32)
    return [_of_stage(stage, own[stage], config, family, spec, demand, layers, cost) for stage in range(spec.p)]


def _of_stage(
    stage: int,
    own: list[Held],
    config: Any,
    family: Family,
    spec: ParallelSpec,
    demand: Demand,
    layers: list[list[int]],
    cost: LayerCost,
) -> RankMemory:
    mine = [(-(-held.count // held.shards), held) for held in own]
    trained = sum(count for count, held in mine if held.trained)
    weights = sum(count * (_WIDE if held.trained else demand.frozen) for count, held in mine)
    if not demand.trains:
        trained, own = 0, [replace(held, trained=False) for held in own]
    gradients, copies = trained * _WIDE, 0
    moments = int(
        sum(count * demand.moment_bytes(held.count) for count, held in mine if held.trained and demand.trains)
    )
    if demand.reference and demand.lora is None and demand.trains:
        copies = 2 * weights  # the starting weights, and the trained ones while those are in their place
    host = moments if demand.offload_optimizer or demand.offload_params else 0
    if demand.offload_params:
        host += weights + gradients + copies
        weights = gradients = copies = 0
    gathered, ends = _gathered(own, spec, demand, is_tied(config))
    number = sum(len(held) for index, held in enumerate(layers) if index % spec.p == stage)
    waiting = spec.p - stage if spec.p > 1 else 1  # micro-batches between their forward and their backward under 1F1B
    kept, working = _activations(config, spec, demand, cost)
    kept = waiting * number * kept if demand.trains else 0
    last = stage == spec.p - 1
    host += kept if demand.activation_offloading else 0
    return RankMemory(
        stage=stage,
        parameters=sum(held.count for held in own),
        weights=weights,
        gradients=gradients,
        optimizer=0 if demand.offload_optimizer or demand.offload_params else moments,
        gathered=gathered,
        activations=0 if demand.activation_offloading else kept,
        working=working,
        logits=_logits(config, spec, demand) if last else 0,
        prefix=_prefix(config, spec, demand, number) if demand.trains else 0,
        reference=copies,
        ends=ends,
        host=host,
    )


def _gathered(own: list[Held], spec: ParallelSpec, demand: Demand, tied: bool) -> tuple[int, int]:
    """What is there of parameters and gradients beside the shards: while layers compute, and at the end of backward.

    FSDP gathers the embedding and the head for the whole step, and one layer ahead. A gradient exists in the
    computation's dtype first, and then in float32 while it is reduced.
    """
    n, units = demand.narrow, dict[str, int]()
    for held in own:
        units[held.unit] = units.get(held.unit, 0) + held.count
    grad = {unit: sum(held.count for held in own if held.unit == unit and held.trained) for unit in units}
    whole, trained = sum(units.values()), sum(grad.values())
    ends, ends_grad = units.pop("ends", 0), grad.pop("ends", 0)
    layer, layer_grad = max(units.values(), default=0), max(grad.values(), default=0)
    cut, thrifty = any(held.shards > 1 for held in own), demand.offload_params or demand.frozen == 2
    if not cut and (demand.precision == "fp32" or demand.on_cpu):
        # Autocast keeps narrow copies. A head's gradient waits for that of the embedding it is tied to.
        waiting = ends_grad * _WIDE if tied else layer_grad * _WIDE // 4
        return waiting + (whole * n if demand.precision == "bf16" else 0), 2 * ends_grad * _WIDE
    reduced = layer_grad * (n + _WIDE)
    if spec.p > 1:  # weights stay gathered, and gradients of all micro-batches are summed before FSDP shards them
        return whole * n + trained * _WIDE, 0
    if thrifty or cut:
        # What a rank has for itself is not freed (`apply_fsdp`): the experts of a layout that spreads them over all.
        stays = 0 if thrifty else n * sum(held.count for held in own if held.shards == 1)
        return ends * n + ends_grad * n + 2 * layer * n + reduced + stays, ends * n + ends_grad * (n + _WIDE) + stays
    return whole * n + ends_grad * n + reduced, whole * n + ends_grad * (n + _WIDE)


def _activations(config: Any, spec: ParallelSpec, demand: Demand, cost: LayerCost) -> tuple[int, int]:
    """Bytes that one layer keeps of a micro-batch until its backward pass, and those of the layer that computes."""
    tokens = -(-demand.max_tokens_per_mb // spec.c)
    residual = tokens * config.hidden_size * demand.narrow
    # Under t a rank has its part of everything, but whole inputs of the two blocks.
    layer = int(tokens * cost.saved / spec.t + 2 * residual * (1 - 1 / spec.t))
    kept = {"full": residual // spec.t, "selective": residual // spec.t + layer // 3, "none": layer}
    working = _IN_BACKWARD * int(tokens * cost.widest / spec.t)
    if not demand.trains:
        return 0, int(tokens * cost.widest / spec.t)
    again = demand.activation_checkpointing != "none"
    return kept[demand.activation_checkpointing], working + (layer if again else 0)


def weight_of_kept(config: Any, precision: str, activation_checkpointing: str) -> float:
    """Memory of a token of a kept prefix over that of a token of a micro-batch, in a layer of a model of ``config``,
    which is of a known family."""
    tokens = 1 << 10
    demand = Demand(precision, activation_checkpointing, max_tokens_per_mb=tokens, prefix=tokens)
    dtype = torch.bfloat16 if demand.narrow == 2 else torch.float32
    # Of a copy: counting sets the attention of a model's configuration for a moment. A validation may ask first, where
    # nothing is kept for a backward pass.
    with torch.inference_mode(False), torch.enable_grad():
        cost, alone = layer_cost(model_without_memory(deepcopy(config)), dtype), ParallelSpec()
    return _prefix(config, alone, demand, 1) / _activations(config, alone, demand, cost)[0]


def _logits(config: Any, spec: ParallelSpec, demand: Demand) -> int:
    """Logits of one part of the labels, their gradient, and that of the head's weight."""
    tokens = -(-demand.max_tokens_per_mb // spec.c)
    one = min(int(TRAINED * tokens * config.vocab_size / spec.t) * demand.narrow, LOGITS_BYTES)
    head = 0 if demand.lora is not None else config.vocab_size * config.hidden_size // spec.t * demand.narrow
    slices = 0 if demand.on_cpu else min(_SLICE_BYTES, 3 * one * _WIDE // demand.narrow)
    return 2 * one + head + slices if demand.trains else one + slices


def _prefix(config: Any, spec: ParallelSpec, demand: Demand, layers: int) -> int:
    """Keys and values of the kept prefix, and the float32 sums of their gradients."""
    heads = getattr(config, "num_attention_heads", None) or 0
    keys = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return demand.prefix * layers * 2 * (keys * head // spec.t) * (demand.narrow + _WIDE)
