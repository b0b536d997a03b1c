"""A model computes tokens that rows share once: log-probs, losses and gradients are those of the separate rows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tau2_lightning.algorithm import GRPO, GSPO, PolicyGradient
from tau2_lightning.batch.batch import Batch
from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.strategy import tree_attention
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.outputs import TokenOutputs
from tests.batch.groups import loss_of, random_groups
from tests.strategy.distributed import fork
from tests.strategy.tiny import connected, full_gradients, tiny_model

LOGPROBS, GRADIENTS = 2e-6, 1e-6


def batch(seed: int = 0) -> Batch:
    return Batch.from_groups(random_groups(seed, 3, 4), GRPO(), version=3)


def local(compute: ArchonCompute, rows: Batch, budget: int, shared: bool) -> list[MicroBatch]:
    d, rank = compute.spec.d, compute.mesh.coordinate("dp")
    count = rows.microbatch_count(budget, d, packed=True, shared=shared, multiple=compute.spec.p)
    return rows.shard(rank, d, shared=shared).microbatches(budget, count, packed=True, shared=shared)


def gradients(
    compute: ArchonCompute, rows: Batch, budget: int, shared: bool, algorithm: PolicyGradient
) -> dict[str, Tensor]:
    """The gradients by name of one step, and its loss."""

    def loss(outputs: TokenOutputs, mb: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return loss_of(algorithm, outputs.logprobs, outputs.entropy, mb)

    for parameter in compute.model.parameters():
        parameter.grad = None
    found = compute.forward_backward(local(compute, rows, budget, shared), loss)
    return {"loss": found.loss, **full_gradients(compute)}


def largest_difference(found: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> float:
    return max(float((value - want[name]).abs().max()) for name, value in found.items())


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "qwen3_moe"])
@pytest.mark.parametrize("budget", [40, 10**6])
@pytest.mark.parametrize("algorithm", [GRPO(), GSPO()], ids=["grpo", "gspo"])
def test_gradients_equal_those_of_separate_rows(family: str, budget: int, algorithm: PolicyGradient) -> None:
    compute = connected("d1")
    compute.parallelize(tiny_model(family=family))
    assert compute.shares
    ours, theirs = (gradients(compute, batch(), budget, shared, algorithm) for shared in (True, False))
    assert ours.keys() == theirs.keys() and max(float(value.abs().max()) for value in theirs.values()) > 1e-2
    assert largest_difference(ours, theirs) <= GRADIENTS


def test_log_probs_and_entropy_equal_those_of_separate_rows() -> None:
    compute = connected("d1")
    compute.parallelize(tiny_model())
    found: list[dict[int, Tensor]] = []
    for shared in (True, False):
        microbatches = local(compute, batch(1), 60, shared)
        values: dict[int, Tensor] = {}
        for mb, out in zip(microbatches, compute.token_outputs(microbatches, temperature=0.7), strict=True):
            for i, row in enumerate(mb["row_ids"].tolist()):
                length = int(mb["lengths"][i])
                values[row] = torch.stack([out.logprobs[i, :length], out.entropy[i, :length]])
        found.append(values)
    assert any(mb["model"].nodes and len(mb["model"].nodes) > 1 for mb in local(compute, batch(1), 60, True))
    for row, value in found[0].items():
        torch.testing.assert_close(value, found[1][row], atol=LOGPROBS, rtol=0)


def in_layout(text: str, family: str) -> dict[str, Tensor]:
    compute = connected(text)
    compute.parallelize(tiny_model(family=family))
    assert compute.shares
    return gradients(compute, batch(), 60, True, GRPO())


LAYOUTS = [("d2", "qwen3"), ("t2", "qwen3"), ("c2", "qwen3"), ("d2e2", "qwen3_moe")]
SLOW = [("p2", "qwen3"), ("d2p2", "qwen3"), ("d2t2", "qwen3")]


@pytest.mark.parametrize(
    ("text", "family"), [*LAYOUTS, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_layouts_compute_shared_tokens_once_too(text: str, family: str) -> None:
    alone = connected("d1")
    alone.parallelize(tiny_model(family=family))
    want = gradients(alone, batch(), 60, False, GRPO())
    ranks = fork(ParallelSpec.parse(text).world, in_layout, text, family)
    assert set().union(*ranks) == want.keys()
    for rank in ranks:
        assert largest_difference(rank, want) <= GRADIENTS


@pytest.mark.parametrize("options", [{"activation_checkpointing": "full"}, {"activation_checkpointing": "selective"}])
def test_with_activation_checkpointing(options: dict[str, str]) -> None:
    found = []
    for given in ({}, options):
        compute = connected("d1", **given)
        compute.parallelize(tiny_model())
        found.append(gradients(compute, batch(), 10**6, True, GRPO()))
    assert largest_difference(*found) <= GRADIENTS


def test_negative_control_a_branch_that_sees_another_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = connected("d1")
    compute.parallelize(tiny_model())
    theirs = gradients(compute, batch(), 10**6, False, GRPO())
    blocks = tree_attention._blocks

    def wrong(nodes: Tensor) -> object:
        yield from blocks(nodes)
        for (start, end, below), (own, last, _) in pairwise(nodes.tolist()):
            if below == end:  # the second is another branch: it must not see the first
                yield slice(own, last), slice(start, end), False

    monkeypatch.setattr(tree_attention, "_blocks", wrong)
    ours = gradients(compute, batch(), 10**6, True, GRPO())
    assert largest_difference(ours, theirs) > 10 * GRADIENTS


def test_labels_beyond_the_limit_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from tau2_lightning.strategy import model

    compute = connected("d1")
    compute.parallelize(tiny_model())
    whole = gradients(compute, batch(), 10**6, True, GRPO())
    monkeypatch.setattr(model, "LOGITS_BYTES", 20_000)
    parts = gradients(compute, batch(), 10**6, True, GRPO())
    assert largest_difference(whole, parts) <= GRADIENTS
