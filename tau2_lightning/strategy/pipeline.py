"""Pipeline schedules over ragged micro-batches.

A schedule carries only the numbers of micro-batches; each stage looks up the micro-batch itself, and receives hidden
states of its own shape. So micro-batches of any lengths run in one call without padding, and one schedule serves each
number of micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class

from tau2_lightning.errors import ConfigError, Violation

from .inputs import TokenInputs
from .mesh import Mesh
from .model import Stage

SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B", "InterleavedZeroBubble")
_V_SHAPED = ("ZBVZeroBubble", "DualPipeV")
# Called on the last stage with the index of the caller's micro-batch and the model's output for it; returns
# the loss.
OnOutput = Callable[[int, Tensor], Tensor]


def renumbered(on_output: OnOutput, numbers: Sequence[int]) -> OnOutput:
    """``on_output`` for a run over some of its micro-batches only, which are these ``numbers``."""
    return lambda index, found: on_output(numbers[index], found)


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


class RaggedStage(PipelineStage):
    """A torch stage whose micro-batches differ in shape.

    Receive buffers are made when a receive is posted, with ``shapes``: the shapes of each slot's hidden states. (torch
    itself makes them once, all of one shape, so every micro-batch would have to be padded to the longest.)
    """

    shapes: Sequence[tuple[int, ...]] = ()

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        self._fit(self.args_recv_info[fwd_chunk_id], self.shapes[fwd_chunk_id])
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        if self.has_backward and not self.is_last:
            self._fit(self.grad_recv_info[bwd_chunk_id], self.shapes[bwd_chunk_id])
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def release(self) -> None:
        """Free what the last run received."""
        for infos in (*self.args_recv_info.values(), *self.grad_recv_info.values()):
            self._fit(infos, (0,))
        self.clear_runtime_states()

    @staticmethod
    def _fit(infos: Sequence[Any], shape: tuple[int, ...]) -> None:
        for info in infos:
            if info.buffer is not None:
                info.buffer = torch.empty(shape, dtype=info.buffer.dtype, device=info.buffer.device)


class Pipeline:
    """Runs this rank's stages. ``hidden_size`` and ``dtype`` describe the hidden states sent between stages."""

    def __init__(
        self, stages: dict[int, Stage], num_stages: int, mesh: Mesh, schedule: str, hidden_size: int, dtype: torch.dtype
    ) -> None:
        self.stages, self.num_stages, self.mesh = stages, num_stages, mesh
        self.schedule_class: Any = get_schedule_class(schedule)
        self.hidden_size, self.dtype = hidden_size, dtype
        self.is_first, self.is_last = 0 in stages, num_stages - 1 in stages
        self._cache: dict[tuple[int, bool], tuple[Any, list[RaggedStage]]] = {}
        self._on_output: OnOutput | None = None
        self._order: list[int] = []

    def run(
        self, feed: Sequence[TokenInputs], filling: TokenInputs, on_output: OnOutput, *, train: bool, temperature: float
    ) -> None:
        """Forward (and backward) every micro-batch; ``on_output`` runs on the last stage only. Collective.

        ``filling`` is a micro-batch that trains nothing. It fills up when other data ranks bring more micro-batches, or
        when their number is no multiple of p.
        """
        count = slots(self.mesh.largest(len(feed)), self.mesh.spec.p)
        if not count:
            return
        # Neighbours of about the same length keep the stages in step.
        self._order = sorted(range(len(feed)), key=lambda index: (-feed[index].input_ids.numel(), index))
        slotted = [*(feed[index] for index in self._order), *[filling] * (count - len(feed))]
        schedule, torch_stages = self._schedule(count, train)
        share = self.mesh.spec.c * self.mesh.spec.t
        shapes = [(inputs.shape[0], inputs.shape[1] // share, self.hidden_size) for inputs in slotted]
        for stage in self.stages.values():
            stage.temperature, stage.feed = temperature, slotted
        for torch_stage in torch_stages:
            torch_stage.shapes = shapes
        # Preparing a schedule clears the gradients of FSDP modules, so what was accumulated is set aside.
        parameters = [p for stage in self.stages.values() for p in stage.parameters()] if train else []
        kept = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        for parameter, _ in kept:
            parameter.grad = None
        self._on_output = on_output
        numbers = torch.arange(count)
        with torch.set_grad_enabled(train):
            (schedule.step if train else schedule.eval)(
                *((numbers,) if self.is_first else ()),
                target=numbers if self.is_last else None,
                losses=[] if self.is_last else None,
                return_outputs=False,
                number=numbers,
            )
        self._on_output = None
        for stage in self.stages.values():
            stage.feed = ()
        for torch_stage in torch_stages:
            torch_stage.release()
        for parameter, grad in kept:
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)

    def _schedule(self, count: int, train: bool) -> tuple[Any, list[RaggedStage]]:
        """The schedule of ``count`` slots. One for training and one for evaluation, because a change between them costs
        a set-up."""
        key = (count, train)
        if key not in self._cache:
            stages = [self._stage(index, stage) for index, stage in self.stages.items()]
            multi = issubclass(self.schedule_class, PipelineScheduleMulti)
            schedule = self.schedule_class(
                stages if multi else stages[0], n_microbatches=count, loss_fn=self._loss, scale_grads=False
            )
            self._cache[key] = schedule, stages
        return self._cache[key]

    def _loss(self, found: Tensor, number: Tensor) -> Tensor:
        assert self._on_output is not None
        slot = int(number)
        return self._on_output(self._order[slot], found) if slot < len(self._order) else found.sum() * 0.0

    def _stage(self, index: int, stage: Stage) -> RaggedStage:
        # Nominal shapes; the sent tensors have each slot's own shape.
        number = torch.empty(1, dtype=torch.int64, device="meta")
        hidden = torch.empty(1, 1, self.hidden_size, dtype=self.dtype, device="meta", requires_grad=True)
        last = torch.empty(1, 1, 2, dtype=torch.float32, device="meta", requires_grad=True)
        takes, gives = (number if stage.is_first else hidden), (last if stage.is_last else hidden)
        return RaggedStage(
            stage, index, self.num_stages, self.mesh.device,
            input_args=takes, output_args=gives, group=self.mesh.group("pp"),
        )  # fmt: skip


def slots(count: int, ranks: int) -> int:
    """Micro-batches of a schedule call: ``count`` rounded up to a multiple of the pipeline ranks."""
    return -(-count // ranks) * ranks
