"""Pipeline schedules over ragged micro-batches.

A torch schedule wants even micro-batches of one shape, and every data rank must run the same calls. So micro-batches
are sorted by length, ranks agree on the shape of the i-th longest, equal shapes become one schedule call, and stages
and schedules are kept per shape (a new one costs half as much again as the step itself).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class

from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.strategy.mesh import Mesh
from tau2_lightning.strategy.model import Stage
from tau2_lightning.strategy.outputs import MicroBatch, TokenOutputs

SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B", "InterleavedZeroBubble")
_V_SHAPED = ("ZBVZeroBubble", "DualPipeV")
Shape = tuple[int, int]
# Called on the last stage with the index of the caller's micro-batch and its outputs; returns the loss to descend.
OnOutput = Callable[[int, TokenOutputs], Tensor]


@dataclass(frozen=True)
class Call:
    """One schedule call: the common [B, T] and, per slot, the caller's micro-batch index or None for filling."""

    shape: Shape
    slots: tuple[int | None, ...]


def check_schedule(name: str) -> None:
    """Raise ConfigError for schedules that are unknown or cannot evaluate."""
    if name in _V_SHAPED:
        problem = "V-shaped schedules cannot run forward only in torch, so nothing could be validated"
        raise ConfigError([Violation("strategy.schedule", name, problem, f"One of {', '.join(SCHEDULES)}")])
    if name not in SCHEDULES:
        raise ConfigError([Violation("strategy.schedule", name, "unknown", f"One of {', '.join(SCHEDULES)}")])


def stages_per_rank(schedule: str) -> int:
    """Virtual stages on each rank: 2 for interleaved schedules, else 1."""
    return 2 if issubclass(get_schedule_class(schedule), PipelineScheduleMulti) else 1


def plan_calls(shapes: Sequence[Shape], ranks: int, bucket: int) -> list[Call]:
    """Group micro-batch shapes, longest first, into schedule calls whose slot count is a multiple of ``ranks``.

    Lengths are rounded up to ``bucket``. A call takes further micro-batches while it has fewer than ``ranks`` (they
    would need filling anyway) or while they have its own shape.
    """
    order = sorted(range(len(shapes)), key=lambda index: (-shapes[index][1], index))
    calls: list[Call] = []
    while order:
        length = -(-shapes[order[0]][1] // bucket) * bucket
        taken: list[int] = []
        while order and (len(taken) % ranks or not taken or -(-shapes[order[0]][1] // bucket) * bucket == length):
            taken.append(order.pop(0))
        rows = max(shapes[index][0] for index in taken)
        calls.append(Call((rows, length), (*taken, *[None] * (-len(taken) % ranks))))
    return calls


def agree_on_shapes(shapes: Sequence[Shape], mesh: Mesh) -> tuple[list[Shape], list[int | None]]:
    """Shapes every data rank will use, longest first, and which local micro-batch stands at each place. Collective."""
    order = sorted(range(len(shapes)), key=lambda index: (-shapes[index][1], index))
    local = [shapes[index] for index in order]
    group = mesh.group("dp")
    if group is None:
        return local, list(order)
    count = torch.tensor([len(local)], device=mesh.device)
    dist.all_reduce(count, dist.ReduceOp.MAX, group=group)
    table = torch.zeros(int(count), 2, dtype=torch.int64, device=mesh.device)
    if local:
        table[: len(local)] = torch.tensor(local, device=mesh.device)
    dist.all_reduce(table, dist.ReduceOp.MAX, group=group)
    return [(rows, length) for rows, length in table.tolist()], [*order, *[None] * (len(table) - len(order))]


def pad(tensor: Tensor, shape: Shape) -> Tensor:
    """Zero-pad [b, t] to [B, T] at the bottom and right."""
    return nn.functional.pad(tensor, (0, shape[1] - tensor.shape[1], 0, shape[0] - tensor.shape[0]))


class Pipeline:
    """Runs this rank's stages. ``hidden_size`` and ``dtype`` describe what travels between stages."""

    def __init__(
        self, stages: dict[int, Stage], num_stages: int, mesh: Mesh, schedule: str, hidden_size: int, dtype: torch.dtype
    ) -> None:
        self.stages, self.num_stages, self.mesh = stages, num_stages, mesh
        self.schedule_class: Any = get_schedule_class(schedule)
        self.hidden_size, self.dtype = hidden_size, dtype
        self.is_first, self.is_last = 0 in stages, num_stages - 1 in stages
        # Lengths are cut over context and tensor ranks.
        self.bucket = math.lcm(64, mesh.spec.c * mesh.spec.t)
        self._cache: dict[tuple[Shape, int], Any] = {}
        self._on_output: Callable[[int, Tensor], Tensor] | None = None

    def run(self, microbatches: Sequence[MicroBatch], on_output: OnOutput, *, train: bool, temperature: float) -> None:
        """Forward (and backward) every micro-batch; ``on_output`` runs on the last stage only. Collective."""
        for stage in self.stages.values():
            stage.temperature = temperature
        shapes = [(int(mb["input_ids"].shape[0]), int(mb["input_ids"].shape[1])) for mb in microbatches]
        agreed, local = agree_on_shapes(shapes, self.mesh)
        for call in plan_calls(agreed, self.mesh.spec.p, self.bucket):
            places = [None if place is None else local[place] for place in call.slots]
            self._call(call.shape, [None if i is None else (i, microbatches[i]) for i in places], on_output, train)

    def _call(
        self, shape: Shape, slots: Sequence[tuple[int, MicroBatch] | None], on_output: OnOutput, train: bool
    ) -> None:
        def column(key: str, dtype: torch.dtype) -> Tensor:
            empty = torch.zeros(shape, dtype=dtype, device=self.mesh.device)
            return torch.cat([pad(slot[1][key], shape) if slot else empty for slot in slots])

        def loss_of(index: int, packed: Tensor) -> Tensor:
            slot = slots[index]
            if slot is None:
                return packed.sum() * 0.0
            rows, length = slot[1]["input_ids"].shape
            cut = packed[:rows, :length]
            return on_output(slot[0], TokenOutputs(cut[..., 0], cut[..., 1]))

        # Preparing a schedule clears the gradients of FSDP modules, so what was accumulated is set aside.
        parameters = [p for stage in self.stages.values() for p in stage.parameters()] if train else []
        kept = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        for parameter, _ in kept:
            parameter.grad = None
        self._on_output = loss_of
        schedule = self._schedule(shape, len(slots))
        run = schedule.step if train else schedule.eval
        inputs = (column("input_ids", torch.int64),) if self.is_first else ()
        target = torch.arange(len(slots)) if self.is_last else None
        with torch.set_grad_enabled(train):
            run(
                *inputs,
                target=target,
                losses=[] if self.is_last else None,
                return_outputs=False,
                labels=column("labels", torch.int64),
                loss_mask=column("loss_mask", torch.bool),
            )
        self._on_output = None
        for parameter, grad in kept:
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)

    def _schedule(self, shape: Shape, count: int) -> Any:
        key = (shape, count)
        if key not in self._cache:
            stages = [self._stage(index, stage, shape) for index, stage in self.stages.items()]
            multi = issubclass(self.schedule_class, PipelineScheduleMulti)
            self._cache[key] = self.schedule_class(
                stages if multi else stages[0], n_microbatches=count, loss_fn=self._loss, scale_grads=False
            )
        return self._cache[key]

    def _loss(self, packed: Tensor, index: Tensor) -> Tensor:
        assert self._on_output is not None
        return self._on_output(int(index), packed)

    def _stage(self, index: int, stage: Stage, shape: Shape) -> PipelineStage:
        def meta(*size: int, dtype: torch.dtype, grad: bool = True) -> Tensor:
            return torch.empty(*size, dtype=dtype, device="meta", requires_grad=grad)

        hidden = (shape[0], shape[1] // (self.mesh.spec.c * self.mesh.spec.t), self.hidden_size)
        takes = meta(*shape, dtype=torch.int64, grad=False) if stage.is_first else meta(*hidden, dtype=self.dtype)
        gives = meta(*shape, 2, dtype=torch.float32) if stage.is_last else meta(*hidden, dtype=self.dtype)
        return PipelineStage(
            stage, index, self.num_stages, self.mesh.device,
            input_args=takes, output_args=gives, group=self.mesh.group("pp"),
        )  # fmt: skip
