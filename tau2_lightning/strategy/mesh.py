"""The layout of the trainer's processes: coordinates and process groups over (pp, dp, cp, tp)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tau2_lightning.config.allocation import ParallelSpec

from .rank_tables import DIMENSIONS, EXPERT_DIMENSIONS, expert_table, rank_table


def is_maximum(name: str) -> bool:
    """Whether a metric is reduced by maximum: its own name (behind ``metric/``) starts with ``max_``."""
    return name.removeprefix("metric/").startswith("max_")


@dataclass(frozen=True)
class Mesh:
    """The layout of the trainer's processes. ``device_mesh`` is None for one process: no process group is needed.

    ``fsdp`` spans data and context ranks (parameters are sharded, gradients summed over it; with two dimensions it is
    (copies, shards): parameters are repeated over the first and sharded over the second); ``sums`` spans every
    rank that can hold a different part of a loss (pp, dp, cp); ``ends`` joins the first and last pipeline stage;
    ``experts`` is the stage's ranks as (``copies``, ``rest``, ``ep``) for a model whose experts are spread: see
    `expert_table`.
    """

    spec: ParallelSpec
    device: torch.device
    device_mesh: DeviceMesh | None = None
    fsdp: DeviceMesh | None = None
    sums: dist.ProcessGroup | None = None
    ends: dist.ProcessGroup | None = None
    experts: DeviceMesh | None = None

    @classmethod
    def build(cls, spec: ParallelSpec, device: torch.device, replicate: int = 1, *, alone: bool = False) -> Mesh:
        """Lay out the default process group, with ``replicate`` copies of the parameters over d x c ranks. Collective.

        One process needs no group, except to let FSDP2 hold its parameters (``alone``): then a group of one is made.
        Raises RuntimeError when the group's size is not the spec's.
        """
        if spec.world == 1:
            return cls(spec, device, fsdp=_alone(device) if alone else None)
        if not dist.is_initialized() or dist.get_world_size() != spec.world:
            have = dist.get_world_size() if dist.is_initialized() else 1
            raise RuntimeError(f"layout {spec} needs {spec.world} processes, there are {have}")
        mesh = init_device_mesh(device.type, tuple(rank_table(spec).shape), mesh_dim_names=DIMENSIONS)
        fsdp = mesh["dp", "cp"]._flatten("fsdp")
        if replicate > 1:
            fsdp = fsdp._unflatten(0, (replicate, spec.d * spec.c // replicate), ("copies", "shards"))
        sums = mesh["pp", "dp", "cp"]._flatten("sums").get_group()
        return cls(spec, device, mesh, fsdp, sums, _ends(mesh, spec))

    def with_experts(self) -> Mesh:
        """This mesh for a model with experts, which are spread when e > 1 and when t > 1: under t each rank has its own
        positions, so it computes its own tokens' experts. Collective when they are spread.
        """
        if self.spec.e * self.spec.t == 1:
            return self
        copies = self.fsdp.size(0) if self.fsdp is not None and self.fsdp.ndim == 2 else 1
        table = expert_table(self.spec, copies)
        every = DeviceMesh(self.device.type, table, mesh_dim_names=EXPERT_DIMENSIONS)
        return replace(self, experts=every["copies", "rest", "ep"])

    def coordinate(self, name: str) -> int:
        """Position along ``pp``, ``dp``, ``cp`` or ``tp``; 0 for one process."""
        return self.device_mesh.get_local_rank(name) if self.device_mesh is not None else 0

    def group(self, name: str) -> dist.ProcessGroup | None:
        """Process group along a dimension, None when it has size 1."""
        size = {"pp": self.spec.p, "dp": self.spec.d, "cp": self.spec.c, "tp": self.spec.t}[name]
        return self.device_mesh.get_group(name) if self.device_mesh is not None and size > 1 else None

    @property
    def shard(self) -> tuple[int, int]:
        """This rank's place among the FSDP shards, and their number."""
        if self.fsdp is None:
            return 0, 1
        last = self.fsdp.ndim - 1
        return self.fsdp.get_local_rank(last), self.fsdp.size(last)

    @property
    def expert_fsdp(self) -> DeviceMesh:
        """The ranks that hold the same experts, as FSDP takes them: like ``fsdp``, for experts that are spread."""
        assert self.experts is not None
        return self.experts["copies", "rest"] if self.experts.size(0) > 1 else self.experts["rest"]

    @property
    def expert_shard(self) -> tuple[int, int]:
        """This rank's place among the FSDP shards of its experts, and their number; (0, 1) when none are spread."""
        return (0, 1) if self.experts is None else (self.experts.get_local_rank("rest"), self.experts.size(1))

    @property
    def rank(self) -> int:
        """Global rank of this process; 0 for one process."""
        return dist.get_rank() if self.device_mesh is not None else 0

    def leader_of_stage(self, pp_rank: int) -> int:
        """Global rank of the process at (pp_rank, 0, 0, 0)."""
        return int(self.device_mesh.mesh[pp_rank, 0, 0, 0]) if self.device_mesh is not None else 0

    def largest(self, count: int) -> int:
        """The largest ``count`` of any data rank: all must make the same collective calls. Collective."""
        group = self.group("dp")
        if group is None:
            return count
        found = torch.tensor([count], device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=group)
        return int(found)

    def sum_over_data(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over the data ranks, in place. Collective."""
        group = self.group("dp")
        if group is not None:
            dist.all_reduce(values, group=group)
        return values

    def sum_scalars(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Reduce scalars by name over pp, dp and cp: those that ``is_maximum`` names by maximum, the rest by addition.

        Ranks may know different names; all get the union. Collective.
        """
        if self.sums is None:
            return {name: value.detach().float() for name, value in values.items()}
        names = _union_of_names(list(values), self.sums, self.device)
        zero = torch.zeros((), device=self.device)
        # float64: token counts beyond 2**24 must survive the sum.
        stacked = torch.stack([values.get(name, zero).detach().double() for name in names])
        dist.all_reduce(stacked, group=self.sums)
        reduced = dict(zip(names, stacked.float(), strict=True))
        maxima = [name for name in names if is_maximum(name)]
        if maxima:
            nothing = torch.full((), -torch.inf, device=self.device)
            largest = torch.stack([values.get(name, nothing).detach().double() for name in maxima])
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.sums)
            reduced |= zip(maxima, largest.float(), strict=True)
        return reduced

    def broadcast_bytes(self, data: bytes | None, src: int = 0) -> bytes:
        """Send bytes from global rank ``src`` to every process. Collective over the default group."""
        if self.device_mesh is None:
            if data is None:
                raise ValueError("broadcast_bytes: the source rank gave no data")
            return data
        size = torch.tensor([len(data) if data is not None else -1], dtype=torch.int64, device=self.device)
        dist.broadcast(size, src)
        if int(size) < 0:
            raise ValueError(f"broadcast_bytes: rank {src} gave no data")
        buffer = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.rank == src and data:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        if int(size):
            dist.broadcast(buffer, src)
        return buffer.cpu().numpy().tobytes()


def _alone(device: torch.device) -> DeviceMesh:
    """A mesh of this process alone, over a default process group that is made when there is none."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh(device.type, (1,), mesh_dim_names=("fsdp",))


def _ends(mesh: DeviceMesh, spec: ParallelSpec) -> dist.ProcessGroup | None:
    if spec.p == 1:
        return None
    if spec.p == 2:
        return mesh.get_group("pp")
    mine = None
    for column in mesh.mesh.flatten(1).T.tolist():  # every rank takes part in making every group
        group = dist.new_group([column[0], column[-1]])
        if dist.get_rank() in (column[0], column[-1]):
            mine = group
    return mine


def _union_of_names(names: list[str], group: dist.ProcessGroup, device: torch.device) -> list[str]:
    blob = "\n".join(names).encode()
    size = torch.tensor([len(blob)], dtype=torch.int64, device=device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, size, group=group)
    longest = max(int(each) for each in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    if blob:
        padded[: len(blob)] = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
    blobs = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(blobs, padded, group=group)
    union: dict[str, None] = {}
    for each, length in zip(blobs, sizes, strict=True):
        union.update(dict.fromkeys(filter(None, each[: int(length)].cpu().numpy().tobytes().decode().split("\n"))))
    return sorted(union)
