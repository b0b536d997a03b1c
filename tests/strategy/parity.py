"""Compares layouts with one process: gradients, losses, metrics, norm, an optimizer step and log-probs, in float32.

Rows are ragged and packed, gradients accumulate over two calls, data ranks bring different numbers of micro-batches.
`tools/parity_table.py` runs `EVERY` and writes docs/parity.json and the table made from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.pipeline import SCHEDULES
from tests.strategy.distributed import fork
from tests.strategy.tiny import clipped_loss, connected, full_gradients, number_of, share, tiny_batches, tiny_model

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Case:
    """A layout of a model under a schedule.

    ``control`` breaks it, so that the comparison must fail: ``mean`` restores FSDP's own divisor, ``router`` leaves out
    the sum of the routers' gradients over t.
    """

    layout: str
    model: str = "qwen3"
    tied: bool = True
    schedule: str = "1F1B"
    control: str = ""

    @property
    def world(self) -> int:
        return ParallelSpec.parse(self.layout).world

    @property
    def microbatches(self) -> int:
        """Enough micro-batches for two calls with some in each."""
        return 4 if ParallelSpec.parse(self.layout).d < 4 else 6

    @property
    def name(self) -> str:
        parts = [self.layout, self.model, "tied" if self.tied else "untied", self.schedule]
        return "-".join([*parts, *([self.control] if self.control else [])])


CONTROLS = [Case("d2", control="mean"), Case("t2e2", "qwen3_moe", tied=False, control="router")]
QUICK = [
    *(Case("d2"), Case("t2", tied=False), Case("p2"), Case("c2", tied=False), Case("t2e2", "qwen3_moe", tied=False)),
    *CONTROLS,
]
EXPERT_LAYOUTS = [
    *("d2e2", "d4e2", "d2p2e2", "d2c2e2", "c2e2"),
    *("t2", "t2e2", "d2t2", "d2t2e2", "d2t2e4", "p2t2", "p2t2e2", "d2p2t2e2"),
]
SPLIT_TWICE = ["c2t2", "c2t2e2", "c2t2e4", "d2c2t2e4"]  # t*c must divide the key-value heads
LAYOUTS = ["d2", "t2", "p2", "p4", "c2", "d2t2", "d2p2", "p2t2", "d2c2", "p2c2", "d2p2t2", "d2p2c2"]
EVERY = [
    *(Case(layout, tied=tied) for layout in LAYOUTS for tied in (True, False)),
    *(Case(layout, schedule=name) for layout in ("p2", "d2p2") for name in SCHEDULES if name != "1F1B"),
    *(Case(layout, "qwen2", tied=False) for layout in ("t2", "c2", "p2t2")),
    *(Case(layout, "qwen3_moe", tied=False) for layout in EXPERT_LAYOUTS),
    *(Case(layout, "qwen3_moe_4kv", tied=False) for layout in SPLIT_TWICE),
    Case("t2e2", "qwen3_moe_mixed", tied=False),
    *CONTROLS,
]


def measure(cases: Iterable[Case], timeout: float = 300.0) -> dict[Case, dict[str, float]]:
    """Largest absolute differences from one process, by quantity; one fork for all cases of equal world."""
    cases = list(cases)
    for case in cases:
        _reference(case)  # before the fork, so that children inherit it
    found: dict[Case, dict[str, float]] = {}
    for world in sorted({case.world for case in cases}):
        group = [case for case in cases if case.world == world]
        ranks = fork(world, _compare_all, group, timeout=timeout)
        for number, case in enumerate(group):
            each = [rank[number] for rank in ranks]
            found[case] = {key: max(rank[key] for rank in each) for key in each[0]}
            names = {name for rank in ranks for name in rank[number + len(group)]}
            assert names - {"lm_head.weight"} == set(_reference(case)["gradients"]) - {"lm_head.weight"}
    return found


def row(case: Case, found: dict[str, float]) -> dict[str, Any]:
    """One entry of docs/parity.json."""
    return {**asdict(case), **{key: float(f"{value:.2e}") for key, value in found.items()}}


_references: dict[tuple[str, bool, int], dict[str, Any]] = {}


def _reference(case: Case) -> dict[str, Any]:
    key = case.model, case.tied, case.microbatches
    if key not in _references:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        _references[key] = _work(Case("d1", case.model, case.tied), case.microbatches)
        torch.set_num_threads(threads)
    return _references[key]


def _compare_all(cases: list[Case]) -> list[Any]:
    """What a rank found for each case, then the names of the gradients it held in each."""
    pairs = [(_work(case, case.microbatches), _reference(case)) for case in cases]
    return [*(_differences(*pair) for pair in pairs), *(list(got["gradients"]) for got, _ in pairs)]


def _work(case: Case, microbatches: int) -> dict[str, Any]:
    """Two accumulated calls, a clip and one AdamW step: all results that a layout could get wrong."""
    compute = connected(case.layout, schedule=case.schedule)
    model = compute.parallelize(tiny_model(tied=case.tied, family=case.model))
    if case.control == "mean":
        _divide_by_ranks(compute)
    elif case.control == "router":
        compute.assembly.partial.clear()
    batches = share(tiny_batches(microbatches), compute)
    before = compute.token_outputs(batches, temperature=0.7)
    outputs = [compute.forward_backward(half, clipped_loss, temperature=0.7) for half in (batches[:1], batches[1:])]
    gradients = full_gradients(compute)
    norm = compute.clip_grad_norm(0.05)
    torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4).step()
    model.zero_grad()
    after = compute.forward_backward(batches, clipped_loss, train=False)
    assert all(parameter.grad is None for parameter in model.parameters())
    weights = {name: tensor.clone() for bucket in compute.iter_full_weights(10_000) for name, tensor in bucket}
    assert bool(weights) == (compute.mesh.rank == 0)
    return {
        "loss": outputs[0].loss + outputs[1].loss,
        "tokens": outputs[0].metrics["tokens"] + outputs[1].metrics["tokens"],
        "entropy": outputs[0].metrics["entropy"] + outputs[1].metrics["entropy"],
        "loss_after_a_step": after.loss,
        "norm": norm,
        "gradients": gradients,
        "weights": weights,
        "logprobs": {number_of(mb): out.logprobs for mb, out in zip(batches, before, strict=True)},
    }


def _differences(got: dict[str, Any], want: dict[str, Any]) -> dict[str, float]:
    # Under a pipeline the last stage's copy of a tied matrix is named lm_head; it holds the same gradient.
    head = want["gradients"].get("lm_head.weight", want["gradients"]["model.embed_tokens.weight"])
    gradients = {**want["gradients"], "lm_head.weight": head}
    return {
        "gradient": _largest(got["gradients"], gradients),
        "gradient_size": max(float(value.abs().max()) for value in want["gradients"].values()),
        **{key: abs(float(got[key] - want[key])) for key in ("loss", "loss_after_a_step", "norm", "tokens")},
        "entropy": abs(float(got["entropy"] / want["entropy"]) - 1),
        "weights": _largest(got["weights"], want["weights"]),
        "logprobs": _largest(got["logprobs"], want["logprobs"]),
    }


def _largest(got: dict[Any, Tensor], want: dict[Any, Tensor]) -> float:
    return max((float((value - want[name]).abs().max()) for name, value in got.items()), default=0.0)


def _divide_by_ranks(compute: ArchonCompute) -> None:
    for program in compute.assembly.programs:
        for module in program.modules():
            if isinstance(module, FSDPModule):
                for group in module._get_fsdp_state()._fsdp_param_groups:
                    group.gradient_divide_factor, group.force_sum_reduction_for_comms = None, False
