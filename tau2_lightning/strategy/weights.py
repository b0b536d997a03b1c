"""Full weights under Hugging Face names, gathered on global rank 0 bucket by bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .mesh import Mesh

# A bucket is gathered, sent to the engines and freed as one unit of this size.
BUCKET_BYTES = 1 << 30
# (name, full tensor) -> the tensor that replaces it; runs on every rank of the owning stage.
Finish = Callable[[str, Tensor], Tensor]
# (name, index) -> the names that slice ``index`` of a parameter has in files: see `Family.fused`.
Pieces = Callable[[str, int], tuple[str, ...]]


@dataclass(frozen=True)
class WeightSpec:
    """One tensor of the model: its Hugging Face name, full shape, dtype, and the pipeline rank that owns it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    owner: int

    @property
    def bytes(self) -> int:
        return int(torch.Size(self.shape).numel() * self.dtype.itemsize)


def persistent_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each shared tensor once (under its first name)."""
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            out[name] = tensor
    return out


def buckets(table: Sequence[WeightSpec], bucket_bytes: int) -> list[list[WeightSpec]]:
    """Cut the table into runs of at most ``bucket_bytes`` (a larger tensor is a bucket of its own)."""
    out: list[list[WeightSpec]] = []
    size = 0
    for spec in table:
        if not out or size + spec.bytes > bucket_bytes:
            out.append([])
            size = 0
        out[-1].append(spec)
        size += spec.bytes
    return out


def iter_full_weights(
    table: Sequence[WeightSpec],
    owned: Mapping[str, Tensor],
    mesh: Mesh,
    bucket_bytes: int,
    finish: Finish | None = None,
    called: Callable[[str], str] = str,
) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield buckets of (name, full tensor) on global rank 0 and empty lists elsewhere. Collective.

    ``called`` turns the table's name of a tensor into the name under which it is sent.

    Every rank must take all buckets, in step with the others. ``owned`` are this rank's parameters, sharded or not.
    One bucket is held at a time: a list is emptied when the next one is taken. A single process yields its own
    parameters, not copies.
    """
    with torch.no_grad():
        for bucket in buckets(table, bucket_bytes):
            ready: list[tuple[str, Tensor]] = []
            for spec in bucket:
                full = _full(spec, owned, mesh, finish)
                if full is not None:
                    ready.append((called(spec.name), full))
                del full
            yield ready
            ready.clear()  # the caller still holds the list while the next bucket is gathered


def _full(spec: WeightSpec, owned: Mapping[str, Tensor], mesh: Mesh, finish: Finish | None) -> Tensor | None:
    mine = spec.owner == mesh.coordinate("pp")
    full = None
    if mine:
        tensor = owned[spec.name].detach()
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        full = full if finish is None else finish(spec.name, full)
    source = mesh.leader_of_stage(spec.owner)
    if source != 0:
        if mesh.rank == source and full is not None:
            dist.send(full.contiguous(), 0)
        elif mesh.rank == 0:
            full = torch.empty(spec.shape, dtype=spec.dtype, device=mesh.device)
            dist.recv(full, source)
    return full if mesh.rank == 0 else None


def as_stored(name: str, full: Tensor, pieces: Pieces | None) -> Iterator[tuple[str, Tensor]]:
    """A tensor under the names that files have for it: cut apart where ``pieces`` returns names."""
    if pieces is None or not pieces(name, 0):
        yield name, full
        return
    for index, part in enumerate(full):
        names = pieces(name, index)
        yield from zip(names, part.chunk(len(names)), strict=True)
