"""Whether weights are finite: asked before they are written to a checkpoint and before they are sent to an engine."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from tau2_lightning.errors import TrainingDiverged

NAMED = 3  # names in an error


def check_finite(tensors: Iterable[tuple[str, Tensor]], doing: str) -> None:
    """Raise TrainingDiverged on every rank when a tensor of any rank holds a value that is not finite. Collective.

    Each rank looks at its own shards, once, without a copy. ``doing`` is what the weights are needed for.
    """
    found = [(name, local) for name, local in ((name, _local(tensor)) for name, tensor in tensors) if _counts(local)]
    names = _not_finite(found)
    elsewhere = False
    if dist.is_initialized() and dist.get_world_size() > 1:
        count = torch.tensor([len(names)], device=_device())
        dist.all_reduce(count, dist.ReduceOp.MAX)
        elsewhere = bool(count)
    if names or elsewhere:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        what = ", ".join(names[:NAMED]) + more if names else "a part of the weights on another rank"
        raise TrainingDiverged(f"not finite: {what}; so {doing} is not done. Older checkpoints are as they were")


def _not_finite(found: list[tuple[str, Tensor]]) -> list[str]:
    """The names of those that hold a value that is not finite."""
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}  # an optimizer counts its steps on the CPU
    for name, local in found:
        # The smallest and the largest are NaN when one value is.
        bounds = torch.stack(torch.aminmax(local.detach())).float()
        by_device.setdefault(local.device, []).append((name, bounds))
    bad: list[str] = []
    for entries in by_device.values():  # one transfer for each device, not one for each tensor
        finite = torch.isfinite(torch.stack([bounds for _, bounds in entries])).all(1).tolist()
        bad += [name for (name, _), good in zip(entries, finite, strict=True) if not good]
    return bad


def _local(tensor: Tensor) -> Tensor:
    return getattr(tensor, "_local_tensor", tensor)  # a DTensor's shard


def _counts(tensor: Tensor) -> bool:
    return bool(tensor.numel()) and tensor.is_floating_point()


def _device() -> torch.device:
    """Where the default group can reduce: NCCL's cannot on the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else torch.device("cpu")
