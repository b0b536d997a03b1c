"""Tensor parallelism and FSDP2 applied to a model's modules in place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from tau2_lightning.config.allocation import ParallelSpec

from .expert_parallel import ExpertShard
from .families.family import Family
from .hf_files import ShardedLoader
from .mesh import Mesh
from .model import is_tied
from .modules import find, put
from .tensor_parallel import SplitNorm, VocabEmbedding, VocabHead, split_layer

Precision = Literal["fp32", "bf16"]


def casts_parameters(precision: Precision, device: torch.device) -> bool:
    """Whether bf16 means bfloat16 parameters in every computation, in any layout: on GPUs, by FSDP2.

    Autocast would leave norms, and with them queries, keys and the residual stream, in float32. The engine does not
    compute that way, it is slower, and the variable-length attention kernel takes half precision only. On a CPU one
    process computes under autocast.
    """
    return precision == "bf16" and device.type == "cuda"


def uses_fsdp(spec: ParallelSpec, precision: Precision, device: torch.device) -> bool:
    """Whether FSDP2 holds the parameters: where they are sharded or repeated, where it casts them, and under t.

    Under t without it plain and distributed parameters would mix, which foreach optimizers refuse.
    """
    return spec.d * spec.c * spec.t > 1 or casts_parameters(precision, device)


def split_model(model: Any, family: Family, layers: Sequence[nn.Module], first: bool, last: bool, mesh: Mesh) -> None:
    """Split the parts of a causal LM that this pipeline rank owns over ``tp``, in place."""
    if mesh.spec.t == 1:
        return
    assert mesh.device_mesh is not None
    assert family.tensor is not None
    tp, parts = mesh.device_mesh["tp"], family.parts
    for layer in layers:
        split_layer(layer, family.tensor, tp, centred=family.centred_norms)
    if first:
        scale = family.embedding_scale(model.config) if family.embedding_scale is not None else None
        put(model, parts.embedding, VocabEmbedding(find(model, parts.embedding), tp, scale))
    if last:
        put(model, parts.norm, SplitNorm(find(model, parts.norm), tp, centred=family.centred_norms))
        put(model, parts.head, VocabHead(find(model, parts.head), tp))
    if first and last and is_tied(model.config):
        find(model, parts.head).weight = find(model, parts.embedding).weight


def apply_fsdp(
    programs: Iterable[nn.Module],
    layer_class_names: Iterable[str],
    mesh: Mesh,
    *,
    bf16: bool,
    loader: ShardedLoader | None = None,
    offload: bool = False,
    thrifty: bool = False,
) -> None:
    """Shard parameters over data and context ranks, and experts over the ranks that hold the same; gradients are SUMMED
    there, in float32.

    ``loader`` gives each unit's parameters memory and content right before it is cut. Losses are already divided by
    global counts, so FSDP's default mean would shrink every gradient. Under a pipeline parameters stay gathered between
    micro-batches.
    ``offload`` keeps parameters and gradients on the CPU. ``thrifty`` frees what was gathered even where each rank
    holds all parameters.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=bf16,
    )
    assert mesh.fsdp is not None
    # Where each rank holds all parameters, freeing what was gathered saves one bfloat16 copy at most. That is as much
    # as a frozen model in bfloat16 takes itself, and more than is left of parameters that are on the CPU.
    thrifty = thrifty or offload
    frees, frees_experts = (mesh.spec.p == 1 and (size > 1 or thrifty) for _, size in (mesh.shard, mesh.expert_shard))
    options: dict[str, Any] = {
        "mesh": mesh.fsdp,
        "mp_policy": policy,
        "reshard_after_forward": frees,
        "offload_policy": CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if offload else OffloadPolicy(),
    }
    names = set(layer_class_names)
    for program in programs:
        for experts in [m for m in program.modules() if isinstance(m, ExpertShard)]:
            if loader is not None:
                loader.fill(experts.parameters(), mesh.expert_shard)
            own = {**options, "mesh": mesh.expert_fsdp, "reshard_after_forward": frees_experts}
            fully_shard(experts, **own)
        for module in [*(m for m in program.modules() if type(m).__name__ in names), program]:
            if loader is not None:
                loader.fill(module.parameters(), mesh.shard)
            fully_shard(module, **options)
        for module in program.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                # gloo has no pre-multiplied sum; a plain SUM is also exactly what is meant.
                module.set_force_sum_reduction_for_comms(True)


def reshard(programs: Iterable[nn.Module]) -> None:
    """Free gathered parameters, so that modules show their sharded ones again (optimizer, checkpoint, export)."""
    for program in programs:
        for module in program.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
