"""An episode counts once in a mean over sequences, however many rows it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.algorithm import GRPO, GSPO, DrGRPO, PolicyGradient
from tau2_lightning.batch.batch import Batch
from tau2_lightning.trajectory import Group, Rollout, Trajectory
from tests.batch.groups import loss_of, tensors, trajectory


def row(tokens: int, first: int) -> Trajectory:
    """A prompt of one token and a turn of ``tokens``."""
    return trajectory([first, *range(50, 50 + tokens)], [(1, 1 + tokens)])


def batch_of(episodes: list[list[int]], algorithm: PolicyGradient) -> Batch:
    """Episodes of rows with these numbers of trained tokens; the first is solved, no row shares a prompt."""
    rollouts = [
        Rollout("t", "g", e, float(e == 0), tuple(row(n, 100 * e + k) for k, n in enumerate(rows)))
        for e, rows in enumerate(episodes)
    ]
    return Batch.from_groups([Group("g", "t", tuple(rollouts))], algorithm, version=0)


def gradient(batch: Batch, algorithm: PolicyGradient, budget: int = 10**6) -> dict[int, list[float]]:
    """Gradient of the trained tokens of each row, at ratio 1."""
    found = {}
    for mb in batch.microbatches(budget):
        logprobs = mb["behaviour_logprobs"].double().requires_grad_()
        loss, _ = loss_of(algorithm, logprobs, torch.zeros_like(logprobs), mb)
        loss.backward()
        assert logprobs.grad is not None
        for number, mask, grad in zip(mb["row_ids"].tolist(), mb["loss_mask"], logprobs.grad, strict=True):
            found[number] = grad[mask].tolist()
    return found


@pytest.mark.parametrize("kind", [GRPO, GSPO], ids=lambda k: k.__name__)
def test_two_branches_pull_as_hard_as_one_row_of_their_tokens(kind) -> None:
    algorithm = kind(aggregation="sequence_mean")
    split, whole = batch_of([[4, 2], [3]], algorithm), batch_of([[6], [3]], algorithm)
    assert split.n_rows == 3 and split.n_episodes == whole.n_episodes == 2
    assert [row.share for row in split.rows] == pytest.approx([4 / 6, 2 / 6, 1.0])
    a, b = gradient(split, algorithm), gradient(whole, algorithm)
    assert a[0] + a[1] == pytest.approx(b[0]), "every token of an episode has the same weight"
    assert a[2] == pytest.approx(b[1]), "the gradient of the other episode is the same"
    assert sum(a[0] + a[1]) == pytest.approx(-sum(a[2])), "advantages are opposite, episodes weigh the same"


def test_a_constant_length_divides_by_episodes() -> None:
    algorithm = DrGRPO(constant_length=10)
    a = gradient(batch_of([[4, 2], [3]], algorithm), algorithm)
    assert a[0] + a[1] == pytest.approx([-0.5 / (2 * 10)] * 6) and a[2] == pytest.approx([0.5 / (2 * 10)] * 3)


def test_a_mean_over_tokens_knows_no_episodes() -> None:
    a = gradient(batch_of([[4, 2], [3]], GRPO()), GRPO(std_level="none"))
    b = gradient(batch_of([[6], [3]], GRPO()), GRPO(std_level="none"))
    assert a[0] + a[1] == pytest.approx(b[0]) and a[2] == pytest.approx(b[1])


def test_the_old_mean_over_rows_would_be_noticed() -> None:
    """Negative control: with rows as episodes, the one with two branches has twice the gradient."""
    algorithm = GRPO(aggregation="sequence_mean")
    batch = batch_of([[4, 2], [3]], algorithm)
    (mb,) = batch.microbatches(10**6)
    rows_as_episodes = {k: v for k, v in tensors(mb).items() if k not in ("n_episodes", "row_shares")}
    logprobs = mb["behaviour_logprobs"].double().requires_grad_()
    loss, _ = algorithm.loss(logprobs, torch.zeros_like(logprobs), rows_as_episodes)
    loss.backward()
    assert logprobs.grad is not None
    sums = logprobs.grad.sum(1)[mb["row_ids"].argsort()]
    assert float(sums[0] + sums[1]) == pytest.approx(-2 * float(sums[2]))


@settings(max_examples=60, deadline=None)
@given(
    episodes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=2, max_size=6),
    n=st.integers(1, 4),
    seed=st.integers(0, 99),
    world=st.integers(1, 3),
    budget=st.sampled_from([1, 12, 10**6]),
)
def test_episodes_stay_together_in_minibatches_and_weigh_one_under_any_cut(episodes, n, seed, world, budget) -> None:
    algorithm = GSPO()
    batch = batch_of(episodes, algorithm)
    parts = batch.minibatches(n, seed=seed)
    assert len(parts) == min(n, len(episodes))
    assert sum(part.n_episodes for part in parts) == len(episodes) == batch.n_episodes
    where = [{row.episode for row in part.rows} for part in parts]
    assert sum(map(len, where)) == len(episodes), "an episode is in one minibatch"
    for part in parts:
        assert sum(row.share for row in part.rows) == pytest.approx(part.n_episodes)
        want = gradient(part, algorithm)
        got: dict[int, list[float]] = {}
        for rank in range(world):
            shard = Batch.from_bytes(part.shard(rank, world).to_bytes())
            assert shard.n_episodes == part.n_episodes
            got |= gradient(shard, algorithm, budget)
        got.pop(-1, None)
        assert got.keys() == want.keys()
        for number, values in want.items():
            np.testing.assert_allclose(got[number], values, rtol=1e-6)
