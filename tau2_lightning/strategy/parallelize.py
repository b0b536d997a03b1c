"""Tensor parallelism and FSDP2 applied to modules in place, under a (pp, dp, cp, tp) mesh."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from tau2_lightning.strategy.mesh import Mesh
from tau2_lightning.strategy.model import TokenHead


def _layer_plan(layer: nn.Module) -> dict[str, ParallelStyle]:
    """Megatron's split of a decoder layer: columns of q, k, v, gate, up; rows of o, down.

    Per-head norms see this rank's heads only; as sequence-parallel modules over the head dimension their gradients
    are reduced once per backward (a plain replicated weight would miss the other ranks' heads).
    """
    plan: dict[str, ParallelStyle] = {
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }
    for name in ("q_norm", "k_norm"):
        if hasattr(layer.self_attn, name):
            plan[f"self_attn.{name}"] = SequenceParallel(sequence_dim=2, use_local_output=True)
    return plan


def apply_tensor_parallel(
    layers: Iterable[nn.Module], embed: nn.Module | None, head: nn.Module | None, mesh: Mesh, *, tied: bool
) -> None:
    """Split layers, embedding (by vocabulary) and head (by vocabulary, local logits out) over ``tp``."""
    assert mesh.device_mesh is not None
    tp = mesh.device_mesh["tp"]
    for layer in layers:
        parallelize_module(layer, tp, _layer_plan(layer))
    if embed is not None:
        parallelize_module(embed, tp, RowwiseParallel(input_layouts=Replicate()))
    if head is not None:
        parallelize_module(head, tp, ColwiseParallel(output_layouts=Shard(-1), use_local_output=True))
    if tied and embed is not None and head is not None:
        head.weight = embed.weight  # each style made its own DTensor of the shared matrix


def vocab_start(head: nn.Module) -> int:
    """First vocabulary row of a head's local shard (torch's chunking: ceil(V / t) rows a rank)."""
    weight = head.weight
    if not isinstance(weight, DTensor):
        return 0
    mesh = weight.device_mesh
    rows = -(-weight.shape[0] // mesh.size())
    return min(rows * mesh.get_local_rank(), weight.shape[0])


def apply_fsdp(programs: Iterable[nn.Module], layer_class_names: Iterable[str], mesh: Mesh, *, bf16: bool) -> None:
    """Shard parameters over data and context ranks; gradients are SUMMED there, in float32.

    Losses are already divided by global counts, so FSDP's default mean would shrink every gradient. Under a
    pipeline parameters stay gathered between micro-batches.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=bf16,
    )
    keep_gathered = mesh.spec.p > 1
    names = set(layer_class_names)
    for program in programs:
        for module in list(program.modules()):
            if type(module).__name__ in names:
                fully_shard(module, mesh=mesh.fsdp, mp_policy=policy, reshard_after_forward=not keep_gathered)
        fully_shard(program, mesh=mesh.fsdp, mp_policy=policy, reshard_after_forward=not keep_gathered)
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


def split_heads(programs: Iterable[nn.Module], mesh: Mesh) -> None:
    """Tell every TokenHead which part of the vocabulary is its own."""
    for program in programs:
        for module in program.modules():
            if isinstance(module, TokenHead):
                module.vocab_start, module.group = vocab_start(module.lm_head), mesh.group("tp")
