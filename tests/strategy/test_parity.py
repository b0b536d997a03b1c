"""Every layout computes the gradients, losses, metrics and weights of one process. Prints the README's table (-s)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from tau2_lightning.allocation import ParallelSpec
from tests.strategy.distributed import fork
from tests.strategy.tiny import clipped_loss, connected, full_gradients, share, tiny_batches, tiny_model

TOLERANCE = 1e-6
QUICK = ["d2", "t2", "p2", "c2", "d2p2", "p2t2"]
LAYOUTS = [*QUICK, "p4", "d2t2", "d2c2", "p2c2"]
ROWS: list[str] = []


def work(text: str, tied: bool, family: str, schedule: str, mean: bool = False) -> dict[str, Any]:
    """Two accumulated calls, clip, one AdamW step; everything a layout could get wrong."""
    engine = connected(text, schedule=schedule)
    model = engine.parallelize(tiny_model(tied=tied, family=family))
    if mean:
        for program in engine._programs:
            for module in program.modules():
                if isinstance(module, FSDPModule):
                    for group in module._get_fsdp_state()._fsdp_param_groups:
                        group.gradient_divide_factor, group.force_sum_reduction_for_comms = None, False
    batches = share(tiny_batches(), engine)
    before = engine.token_outputs(batches, temperature=0.7)
    outputs = [engine.forward_backward(half, clipped_loss, temperature=0.7) for half in (batches[:1], batches[1:])]
    gradients = full_gradients(engine)
    norm = engine.clip_grad_norm(0.05)
    torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4).step()
    model.zero_grad()
    after = engine.forward_backward(batches, clipped_loss, train=False)
    weights = {name: tensor.clone() for bucket in engine.iter_full_weights(10_000) for name, tensor in bucket}
    assert all(parameter.grad is None for parameter in model.parameters())
    return {
        "loss": outputs[0].loss + outputs[1].loss,
        "tokens": outputs[0].metrics["tokens"] + outputs[1].metrics["tokens"],
        "entropy": outputs[0].metrics["entropy"] + outputs[1].metrics["entropy"],
        "after": after.loss,
        "norm": norm,
        "gradients": {name: tensor.numpy() for name, tensor in gradients.items()},
        "weights": {name: tensor.numpy() for name, tensor in weights.items()},
        "logprobs": torch.cat([each.logprobs.flatten() for each in before]).numpy(),
        "data_rank": engine.mesh.coordinate("dp"),
    }


_references: dict[tuple[bool, str], dict[str, Any]] = {}


def reference(tied: bool, family: str) -> dict[str, Any]:
    if (tied, family) not in _references:
        _references[tied, family] = fork(1, work, "d1", tied, family, "1F1B")[0]
    return _references[tied, family]


def largest(left: dict[str, Any], right: dict[str, Any]) -> float:
    return max(float(abs(value - right[name]).max()) for name, value in left.items())


def compare(text: str, tied: bool, family: str = "qwen3", schedule: str = "1F1B") -> None:
    ranks, want = fork(ParallelSpec.parse(text).world, work, text, tied, family, schedule), reference(tied, family)
    # Under a pipeline the last stage's copy of a tied matrix is named lm_head; it holds the same gradient.
    gradients = {**want["gradients"], "lm_head.weight": want["gradients"].get("lm_head.weight")}
    if tied:
        gradients["lm_head.weight"] = want["gradients"]["model.embed_tokens.weight"]
    difference = max(largest(rank["gradients"], gradients) for rank in ranks)
    assert difference <= TOLERANCE
    for rank in ranks:
        for key in ("loss", "after", "norm"):
            assert abs(rank[key] - want[key]) <= TOLERANCE, key
        assert rank["tokens"] == want["tokens"] and abs(rank["entropy"] / want["entropy"] - 1) < 1e-6
    seen = {name for rank in ranks for name in rank["gradients"]} - ({"lm_head.weight"} if tied else set())
    assert seen == set(want["gradients"])
    weights = ranks[0]["weights"]
    assert list(weights) == list(want["weights"]) and all(not rank["weights"] for rank in ranks[1:])
    assert largest(weights, want["weights"]) <= 2e-6  # one AdamW step divides by small numbers
    by_data_rank = {rank["data_rank"]: rank["logprobs"] for rank in ranks}
    together = torch.cat([torch.from_numpy(by_data_rank[rank]) for rank in sorted(by_data_rank)])
    assert float((together - torch.from_numpy(want["logprobs"])).abs().max()) < 5e-6
    for rank in ranks:
        assert abs(rank["logprobs"] - by_data_rank[rank["data_rank"]]).max() == 0.0
    size = max(float(abs(value).max()) for value in want["gradients"].values())
    ROWS.append(f"| {text} | {schedule} | {family}{', tied' if tied else ''} | {difference:.1e} | {size:.2f} |")


@pytest.fixture(scope="module", autouse=True)
def _table() -> Any:
    yield
    print("\n| layout | schedule | model | largest gradient difference | largest gradient |\n|---|---|---|---|---|")
    print("\n".join(ROWS))


@pytest.mark.parametrize(
    "text", [pytest.param(text, marks=[] if text in QUICK else pytest.mark.slow) for text in LAYOUTS]
)
def test_layout_tied(text: str) -> None:
    compare(text, tied=True)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["p2t2", "c2"])
def test_qwen2_with_biases(text: str) -> None:
    compare(text, tied=False, family="qwen2")


@pytest.mark.parametrize(
    "text",
    [
        "d2e2",
        *(pytest.param(text, marks=pytest.mark.slow) for text in ("d2c2e2", "c2e2", "d2", "p2", "d2p2e2", "d2c2e4")),
    ],
)
def test_mixture_of_experts(text: str) -> None:
    compare(text, tied=True, family="qwen3_moe")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["GPipe", "Interleaved1F1B", "InterleavedZeroBubble"])
def test_schedules(schedule: str) -> None:
    compare("p2" if schedule == "GPipe" else "d2p2", tied=True, schedule=schedule)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("text", ["d2p2t2", "d2p2c2"])
def test_three_dimensions(text: str, tied: bool) -> None:
    compare(text, tied)


@pytest.mark.slow
@pytest.mark.parametrize("text", LAYOUTS)
def test_every_layout_untied(text: str) -> None:
    compare(text, tied=False)


def test_negative_control_mean_over_data_ranks_is_caught() -> None:
    """FSDP's own divisor (a mean) must show: otherwise the grid could not see a wrong scale."""
    ranks, want = fork(2, work, "d2", True, "qwen3", "1F1B", True), reference(True, "qwen3")
    assert largest(ranks[0]["gradients"], want["gradients"]) > 1e-3
