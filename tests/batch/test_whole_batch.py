"""The stage over all tokens of a batch: the loss and its gradient do not depend on how the batch is cut afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tau2_lightning.algorithm import (
    GMPO,
    GRPO,
    SAPO,
    AdvNorm,
    ClipCov,
    KLCov,
    PolicyGradient,
    ReinforcePP,
    ReinforcePPBaseline,
)
from tau2_lightning.batch.batch import Batch
from tests.algorithm.oracles import normalised_tokens
from tests.batch.groups import loss_of, random_groups

AREAL = PolicyGradient(
    reward_bias=-0.5, reward_scaling=10.0, reward_clip=20.0, mean_level="none", std_level="none",
    adv_norm=AdvNorm(mean_level="batch", std_level="batch"),
)  # fmt: skip
KINDS: list[PolicyGradient] = [
    AREAL,
    GRPO(adv_norm=AdvNorm(mean_level="group", std_level="batch"), turn_discount=0.9),
    ReinforcePP(kl_ctl=0.2),
    ReinforcePPBaseline(),
    SAPO(),
    GMPO(),
    ClipCov(clip_cov_ratio=0.3, clip_cov_lb=-1.0, clip_cov_ub=1.0),
    ClipCov(clip_cov_ratio=0.3, clip_cov_lb=-1.0, clip_cov_ub=1.0, proximal="recompute"),
    KLCov(kl_cov_ratio=0.2, proximal="recompute"),
    KLCov(kl_cov_ratio=0.2, adv_norm=AdvNorm(std_level="group"), aggregation="sequence_mean"),
]
NAMES = [f"{type(kind).__name__}-{kind.proximal}" for kind in KINDS]


def prepared(algorithm: PolicyGradient, seed: int = 0) -> Batch:
    """A batch as GRPOModule prepares it before the first step, with random log-probs of the trainer."""
    batch = Batch.from_groups(random_groups(seed, 5, 4), algorithm, version=3)
    rng = np.random.default_rng(seed)
    for name in ("proximal_logprobs", "reference_logprobs"):
        noise = {row.row_id: rng.normal(0, 0.5, len(row)).astype(np.float32) for row in batch.rows}
        batch = batch.with_column(name, {row.row_id: row.behaviour_logprobs + noise[row.row_id] for row in batch.rows})
    return batch.finished(algorithm) if algorithm.finishes_late else batch


def trained_policy(batch: Batch) -> dict[int, torch.Tensor]:
    """Log-probs of each row under the trained policy, as tensors that collect gradients."""
    found = {}
    for row in batch.rows:
        moved = row.behaviour_logprobs + np.random.default_rng(row.row_id).normal(0, 0.4, len(row))
        found[row.row_id] = torch.tensor(moved, dtype=torch.float32, requires_grad=True)
    return found


def summed(algorithm: PolicyGradient, parts: list[Batch], width: int, **how: Any) -> tuple[float, torch.Tensor]:
    """Loss and gradient over the micro-batches of several parts (data ranks) of one optimizer step."""
    policy = trained_policy(parts[0].select([row for part in parts for row in part.rows]))
    total = torch.zeros(())
    for part in parts:
        for mb in part.microbatches(width, **how):
            height, wide = mb["loss_mask"].shape
            rows = []
            for row_id in mb["row_ids"].tolist():
                values = policy.get(row_id, torch.zeros(1))
                rows.append(torch.nn.functional.pad(values, (0, wide - len(values))))
            logprobs = torch.stack(rows)
            assert logprobs.shape == (height, wide)
            loss, _ = loss_of(algorithm, logprobs, torch.zeros_like(logprobs), mb)
            total = total + loss
    total.backward()
    grads = [policy[row_id].grad for row_id in sorted(policy)]
    return float(total), torch.cat([torch.zeros(1) if grad is None else grad for grad in grads])


@pytest.mark.parametrize("algorithm", KINDS, ids=NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_cut_into_ranks_and_microbatches_changes_nothing(algorithm: PolicyGradient, seed: int) -> None:
    batch = prepared(algorithm, seed)
    loss, grad = summed(algorithm, [batch], 100_000)
    assert grad.abs().max() > 1e-4
    for world, width in ((1, 40), (2, 40), (3, 25), (7, 100_000)):
        shards = [batch.shard(rank, world) for rank in range(world)]
        count = batch.microbatch_count(width, world)
        other, other_grad = summed(algorithm, shards, width, count=count)
        assert other == pytest.approx(loss, rel=1e-5, abs=1e-6)
        torch.testing.assert_close(other_grad, grad, rtol=1e-4, atol=1e-6)


def test_normalising_each_microbatch_would_change_the_gradient() -> None:
    """Negative control: this difference is the reason for the stage."""
    whole = Batch.from_groups(random_groups(0, 5, 4), AREAL, version=3)
    raw = PolicyGradient(reward_bias=-0.5, reward_scaling=10.0, mean_level="none", std_level="none")
    parts = Batch.from_groups(random_groups(0, 5, 4), raw, version=3)
    shards = [parts.shard(rank, 3).finished(AREAL) for rank in range(3)]
    _, grad = summed(AREAL, [whole], 100_000)
    _, wrong = summed(AREAL, shards, 100_000)
    assert (wrong - grad).abs().max() > 0.1 * grad.abs().max()


@pytest.mark.parametrize("algorithm", KINDS, ids=NAMES)
def test_every_rank_reads_the_same_batch_from_its_bytes(algorithm: PolicyGradient) -> None:
    made = Batch.from_groups(random_groups(4, 3, 4), algorithm, version=3)
    read = Batch.from_bytes(made.to_bytes())
    assert read.columns == made.columns and [row.group for row in read.rows] == [row.group for row in made.rows]
    assert len({row.group for row in read.rows}) == 3
    for a, b in zip(read.rows, made.rows, strict=True):
        np.testing.assert_array_equal(a.advantages, b.advantages)
        for name in made.columns:
            np.testing.assert_array_equal(a.columns[name], b.columns[name])


@pytest.mark.parametrize(
    ("mean", "std"), [("batch", "batch"), ("group", "group"), ("group", "batch"), ("none", "group")]
)
def test_the_rows_advantages_are_those_of_the_loop(mean: Any, std: Any) -> None:
    groups = random_groups(2, 4, 3)
    plain = PolicyGradient(mean_level="none", std_level="none", reward_bias=0.3)
    normed = PolicyGradient(
        mean_level="none", std_level="none", reward_bias=0.3, adv_norm=AdvNorm(mean_level=mean, std_level=std)
    )
    before, after = (Batch.from_groups(groups, algorithm, version=0) for algorithm in (plain, normed))
    values = [float(a) for row in before.rows for a in row.advantages[row.loss_mask]]
    owner = [row.row_id // 3 for row in before.rows for _ in range(int(row.loss_mask.sum()))]
    want = normalised_tokens(values, owner, mean, std, True, 1e-5)
    got = [float(a) for row in after.rows for a in row.advantages[row.loss_mask]]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert all((row.advantages[~row.loss_mask] == 0).all() for row in after.rows)


def test_minibatches_share_the_batchs_statistics() -> None:
    """As in AReaL, whose minibatches are cut after the normalisation."""
    batch = Batch.from_groups(random_groups(0, 6, 4), AREAL, version=0)
    whole = {row.row_id: row.advantages for row in batch.rows}
    parts = batch.minibatches(3, seed=1)
    assert sum(len(part) for part in parts) == len(batch)
    for part in parts:
        for row in part.rows:
            np.testing.assert_array_equal(row.advantages, whole[row.row_id])


def test_a_batch_without_rows_and_a_column_of_the_wrong_length() -> None:
    assert len(Batch.from_groups([], ReinforcePPBaseline(), version=0)) == 0

    class Short:
        def finish(self, tokens: Any, version: int) -> dict[str, torch.Tensor]:
            return {"chosen": torch.zeros(2)}

    batch = Batch.from_groups(random_groups(0, 1, 3), GRPO(), version=0)
    with pytest.raises(ValueError, match="chosen of the whole batch: 2 values"):
        batch.finished(Short())


def test_an_empty_microbatch_has_the_chosen_column_too() -> None:
    batch = Batch.from_groups(random_groups(0, 1, 3), ClipCov(), version=0)
    empty = batch.select([]).microbatches(100, 1)
    assert "chosen" in empty[0] and empty[0]["chosen"].shape == (1, 1)
