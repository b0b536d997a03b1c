"""Batches: alignment of labels, credit, forests, shards, micro-batches and bytes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from tau2_lightning.algorithm import GRPO, GSPO, DrGRPO, PolicyGradient, merge
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.packing import balance, plan_microbatches
from tau2_lightning.batch.plain_rows import scoring_batch
from tau2_lightning.trajectory import Group, Rollout, Turn
from tests.batch.groups import group, loss_of, random_groups, tensors, trajectory

FEW = settings(max_examples=50, deadline=None)


# ---- labels ---------------------------------------------------------------------------------------------------------


def test_everything_is_aligned_to_the_label_it_speaks_of() -> None:
    a = trajectory([5, 6, 7, 8, 9], [(2, 4)], version=3)
    b = trajectory([5, 6, 4], [(2, 3)], version=4)
    batch = Batch.from_groups([group((1.0, a), (0.0, b))], DrGRPO(), version=4)
    (mb,) = batch.microbatches(100)
    assert mb["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 6, 4, 0, 0]]
    assert mb["labels"].tolist() == [[6, 7, 8, 9, 0], [6, 4, 0, 0, 0]]
    assert mb["loss_mask"].tolist() == [[False, True, True, False, False], [False, True, False, False, False]]
    torch.testing.assert_close(
        mb["behaviour_logprobs"], torch.tensor([[0, -0.3, -0.4, 0, 0], [0, -0.3, 0, 0, 0]], dtype=torch.float32)
    )
    assert mb["advantages"].tolist() == [[0, 0.5, 0.5, 0, 0], [0, -0.5, 0, 0, 0]]
    assert mb["versions"].tolist() == [[-1, 3, 3, -1, -1], [-1, 4, -1, -1, -1]]
    assert mb["lengths"].tolist() == [5, 3] and mb["row_ids"].tolist() == [0, 1]
    assert float(mb["n_tokens"]) == 3 and float(mb["n_rows"]) == 2 and int(mb["version"]) == 4
    dtypes = {name: value.dtype for name, value in tensors(mb).items()}
    assert dtypes["input_ids"] == dtypes["labels"] == dtypes["row_ids"] == dtypes["lengths"] == torch.int64
    assert dtypes["loss_mask"] == torch.bool and dtypes["versions"] == torch.int32
    assert dtypes["advantages"] == dtypes["behaviour_logprobs"] == dtypes["n_tokens"] == torch.float32
    assert batch.statistics["staleness/max"] == 1.0


def test_turns_sampled_from_an_altered_distribution_are_not_trained_and_are_counted() -> None:
    turns = (Turn(1, 3, altered="json"), Turn(4, 6))
    row = trajectory([1, 2, 3, 4, 5, 6], [(1, 3), (4, 6)], turns=turns)
    batch = Batch.from_groups([group((1.0, row), (0.0, row))], GRPO(), version=0)
    assert batch.rows[0].loss_mask.tolist() == [False, False, False, True, True, False]
    assert batch.n_tokens == 4
    assert batch.statistics["altered_turns"] == 2 and batch.statistics["altered_tokens"] == 4
    assert row.loss_mask.tolist() == [False, False, False, False, True, True]
    without = dataclasses.replace(row, logprobs=np.where(row.loss_mask, row.logprobs, 0).astype(np.float32))
    batch = Batch.from_groups([group((1.0, without), (0.0, row))], GRPO(), version=0)
    assert batch.statistics["altered_turns"] == 2, "a turn without log-probs counts as well"


def test_a_row_without_trained_tokens_is_left_out_and_counted() -> None:
    only_altered = trajectory([1, 2], [(1, 2)], turns=(Turn(1, 2, altered="json"),))
    row = trajectory([1, 2, 3], [(1, 3)])
    batch = Batch.from_groups([group((1.0, row), (0.0, only_altered))], GRPO(), version=0)
    assert len(batch) == batch.n_rows == 1 and batch.statistics["rows_without_tokens"] == 1
    assert batch.rows[0].row_id == 0


def test_logprobs_that_are_no_numbers_are_not_trained() -> None:
    row = trajectory([1, 2, 3, 4], [(1, 4)], logprobs=[0, -1, float("nan"), float("-inf")])
    batch = Batch.from_groups([group((1.0, row), (0.0, row))], GRPO(), version=0)
    assert batch.n_tokens == 2 and batch.statistics["nonfinite_tokens"] == 4
    assert all(np.isfinite(r.behaviour_logprobs).all() for r in batch.rows)


def test_tokens_that_two_branches_of_one_session_share_are_trained_once() -> None:
    main = trajectory([1, 2, 3, 4, 5], [(1, 3), (4, 5)])
    branch = trajectory([1, 2, 3, 9, 9], [(1, 3), (4, 5)], branch=1)
    other = trajectory([1, 2, 3, 4], [(1, 3)])
    g = Group("g", "t", (Rollout("t", "g", 0, 1.0, (main, branch)), Rollout("t", "g", 1, 0.0, (other,))))
    batch = Batch.from_groups([g], GRPO(), version=0)
    assert [r.loss_mask.tolist() for r in batch.rows] == [
        [True, True, False, True, False],
        [False, False, False, True, False],
        [True, True, False, False],  # another episode sampled the same tokens: they are trained too
    ]
    assert batch.statistics["duplicate_tokens"] == 2


def test_credit_follows_turn_discount_and_penalties_down_to_tokens() -> None:
    turns = (Turn(1, 2), Turn(2, 3, invalid_format=True), Turn(3, 4, reward=1.0))
    good = trajectory([1, 2, 3, 4], [(1, 4)], turns=turns)
    bad = trajectory([1, 2, 3], [(1, 3)])
    algorithm = DrGRPO(turn_discount=0.5, invalid_format_penalty=0.2)
    batch = Batch.from_groups([group((1.0, good), (0.0, bad))], algorithm, version=0)
    # Rewards .8 and 0, baseline .4. Centred turn rewards 0, -.2, 1 - .4; then returns with discount 1/2.
    last, middle = 0.6, -0.2 + 0.5 * 0.6
    expected = [0.5 * middle, middle, last, 0.0]
    np.testing.assert_allclose(batch.rows[0].advantages, expected, atol=1e-7)
    np.testing.assert_allclose(batch.rows[1].advantages, [-0.4, -0.4, 0], atol=1e-7)
    assert batch.statistics["invalid_format_turns"] == 1


def test_a_group_in_which_everything_fails_has_no_gradient() -> None:
    row = trajectory([1, 2, 3], [(1, 3)])
    batch = Batch.from_groups([group((0.0, row), (0.0, row), (0.0, row))], GRPO(), version=0)
    (mb,) = batch.microbatches(100)
    logprobs = torch.zeros_like(mb["behaviour_logprobs"], requires_grad=True)
    loss, _ = loss_of(GRPO(), logprobs, torch.zeros_like(logprobs), mb)
    loss.backward()
    assert logprobs.grad is not None and (logprobs.grad == 0).all() and batch.statistics["zero_variance_groups"] == 1


# ---- cutting --------------------------------------------------------------------------------------------------------


@FEW
@given(
    lengths=st.lists(st.integers(1, 50), max_size=30),
    budget=st.integers(1, 120),
    extra=st.integers(0, 40),
    packed=st.booleans(),
)
def test_a_plan_holds_every_row_once_within_its_budget(lengths, budget, extra, packed) -> None:
    def size(part: list[int]) -> int:
        each = [lengths[i] for i in part]
        return sum(each) if packed else len(part) * max(each, default=0)

    plan = plan_microbatches(lengths, budget, packed=packed)
    wider = plan_microbatches(lengths, budget, len(plan) + extra, packed=packed)
    assert len(wider) == len(plan) + extra
    for parts in (plan, wider):
        assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
        assert all(len(part) <= 1 or size(part) <= budget for part in parts)
    if plan:
        with pytest.raises(ValueError, match="were asked for"):
            plan_microbatches(lengths, budget, len(plan) - 1, packed=packed)


def test_packed_parts_are_few_and_even() -> None:
    lengths = [100, 90, 50, 50, 40, 30, 20, 20]
    plan = plan_microbatches(lengths, 140, packed=True)
    assert sorted(sum(lengths[i] for i in part) for part in plan) == [130, 130, 140]
    assert len(plan_microbatches(lengths, 140)) == 5  # padded to the longest


@FEW
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    world=st.integers(1, 5),
    multiple=st.integers(1, 4),
    budget=st.integers(1, 120),
    packed=st.booleans(),
)
def test_all_data_ranks_agree_on_the_count_without_asking(lengths, world, multiple, budget, packed) -> None:
    batch = scoring_batch([list(range(n)) for n in lengths])
    count = batch.microbatch_count(budget, world, packed=packed, multiple=multiple)
    assert count % multiple == 0
    shards = [batch.shard(rank, world).microbatches(budget, count, packed=packed) for rank in range(world)]
    assert {len(shard) for shard in shards} == {count}
    seen = [int(row) for shard in shards for mb in shard for row in mb["row_ids"] if row >= 0]
    assert sorted(seen) == list(range(len(lengths)))


@FEW
@given(lengths=st.lists(st.integers(1, 50), max_size=30), world=st.integers(1, 6))
def test_shards_are_a_balanced_partition(lengths, world) -> None:
    shards = balance(lengths, world)
    assert sorted(i for shard in shards for i in shard) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in shard) for shard in shards]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@FEW
@given(
    seed=st.integers(0, 999),
    world=st.integers(1, 4),
    budget=st.sampled_from([1, 20, 60, 1000]),
    extra=st.integers(0, 3),
)
@pytest.mark.parametrize(
    "algorithm",
    [
        GRPO(),
        GRPO(aggregation="sequence_mean", entropy_coef=0.1),
        DrGRPO(c_clip=3.0),
        GSPO(eps_clip=0.1, eps_clip_higher=0.1),
        PolicyGradient(proximal="interpolate", rejection="sequence"),
    ],
    ids=lambda a: f"{type(a).__name__}-{a.aggregation}",
)
def test_loss_gradient_and_metrics_do_not_depend_on_shards_or_micro_batches(
    algorithm, seed, world, budget, extra
) -> None:
    batch = Batch.from_groups(random_groups(seed, 2, 3), algorithm, version=3)

    def totals(microbatches) -> tuple[float, dict[int, list[float]], dict[str, float]]:
        loss_sum = 0.0
        gradients: dict[int, list[float]] = {}
        metrics: dict[str, float] = {}
        for mb in microbatches:
            positions = torch.arange(mb["labels"].shape[1])
            logprobs = (mb["behaviour_logprobs"] + 0.3 * torch.sin(3.0 * mb["labels"] + positions)).double()
            logprobs.requires_grad_()
            entropy = torch.cos(mb["labels"].double())
            loss, sums = loss_of(algorithm, logprobs, entropy, mb)
            loss.backward()
            loss_sum += float(loss)
            metrics = merge(metrics, {k: float(v) for k, v in sums.items()})
            for row, n, grad in zip(mb["row_ids"].tolist(), mb["lengths"].tolist(), logprobs.grad, strict=True):
                gradients[row] = grad[:n].tolist()
        gradients.pop(-1, None)
        return loss_sum, gradients, metrics

    want = totals(batch.microbatches(10**6))
    count = batch.microbatch_count(budget, world) + extra
    parts = [mb for rank in range(world) for mb in batch.shard(rank, world).microbatches(budget, count)]
    assert len(parts) == count * world
    got = totals(parts)
    assert got[0] == pytest.approx(want[0], rel=1e-6, abs=1e-7)
    assert got[1].keys() == want[1].keys()
    for row, gradient in want[1].items():
        np.testing.assert_allclose(got[1][row], gradient, rtol=1e-6, atol=1e-9)
    assert got[2] == pytest.approx(want[2], rel=1e-4, abs=1e-4)


def test_averaging_shards_by_their_own_counts_would_be_noticed() -> None:
    """Negative control: with each shard's own denominators the sum of losses differs."""
    batch = Batch.from_groups(random_groups(5, 2, 3), GRPO(), version=3)

    def loss(b: Batch) -> float:
        (mb,) = b.microbatches(10**6)
        return float(loss_of(GRPO(), mb["behaviour_logprobs"] - 0.1, mb["advantages"], mb)[0])

    shards = [batch.shard(r, 2) for r in range(2)]
    own = [s.select(s.rows, own_counts=True) for s in shards]
    assert sum(map(loss, shards)) == pytest.approx(loss(batch), rel=1e-5)
    assert abs(sum(map(loss, own)) - loss(batch)) > 1e-3


@FEW
@given(seed=st.integers(0, 999), n=st.integers(1, 8))
def test_minibatches_partition_the_rows_and_count_their_own(seed, n) -> None:
    batch = Batch.from_groups(random_groups(seed, 2, 3), GRPO(), version=3)
    parts = batch.minibatches(n, seed=seed)
    assert len(parts) == min(n, len(batch))
    assert sorted(row.row_id for part in parts for row in part.rows) == [row.row_id for row in batch.rows]
    assert sum(part.n_tokens for part in parts) == batch.n_tokens
    assert all(part.n_rows == len(part) and part.n_tokens == part.trained_tokens for part in parts)
    again = batch.minibatches(n, seed=seed)
    assert [[r.row_id for r in p.rows] for p in parts] == [[r.row_id for r in p.rows] for p in again]


def test_an_empty_micro_batch_is_a_well_formed_one() -> None:
    batch = Batch.from_groups([group((1.0, trajectory([1, 2, 3], [(1, 3)])))], GRPO(), version=0)
    full, empty = batch.microbatches(100, count=2)
    assert empty.keys() == full.keys()
    assert {k: v.dtype for k, v in tensors(empty).items()} == {k: v.dtype for k, v in tensors(full).items()}
    assert {k: v.dim() for k, v in tensors(empty).items()} == {k: v.dim() for k, v in tensors(full).items()}
    assert not empty["loss_mask"].any() and empty["row_ids"].tolist() == [-1]
    loss, metrics = loss_of(GRPO(), torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1), empty)
    assert float(loss) == 0 and loss.requires_grad and all(float(v) == 0 for k, v in metrics.items())


def test_a_rank_without_rows_gets_every_column_that_the_others_have() -> None:
    batch = Batch.from_groups([group((1.0, trajectory([1, 2, 3], [(1, 3)])))], GRPO(), version=0)
    (row,) = batch.rows
    for name in ("proximal_logprobs", "reference_logprobs"):
        batch = batch.with_column(name, {row.row_id: np.zeros(3, np.float32)})
    full, empty = (batch.shard(rank, 2).microbatches(100, count=1)[0] for rank in range(2))
    if not full["loss_mask"].any():
        full, empty = empty, full
    assert full["loss_mask"].any() and not empty["loss_mask"].any()
    assert empty.keys() == full.keys()
    algorithm = GRPO(proximal="recompute", kl_ctl=0.1)
    loss, _ = loss_of(algorithm, torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1), empty)
    assert float(loss) == 0
    assert Batch.from_bytes(batch.shard(1, 2).to_bytes()).columns == batch.columns


def test_a_budget_of_zero_and_a_rank_outside_the_world_are_refused() -> None:
    batch = Batch.from_groups([group((1.0, trajectory([1, 2, 3], [(1, 3)])))], GRPO(), version=0)
    with pytest.raises(ValueError, match="max_tokens_per_mb"):
        batch.microbatches(0)
    with pytest.raises(ValueError, match="rank 2"):
        batch.shard(2, 2)
    with pytest.raises(ValueError, match="0 parts"):
        batch.minibatches(0)


# ---- forms of tokens ------------------------------------------------------------------------------------------------


def test_parts_choose_rows_and_keep_the_segments() -> None:
    batch = Batch.from_groups(random_groups(4, 3, 3), GRPO(), version=3)
    every = set(batch.segments)
    for part in (*batch.minibatches(3, seed=1), *(batch.shard(rank, 2) for rank in range(2))):
        assert set(part.segments) <= every, "segments were copied"
        assert {row.leaf for row in part.rows} <= {row.leaf for row in batch.rows}


def test_a_row_that_shares_nothing_ends_in_its_trajectory_s_own_segment() -> None:
    a, b = trajectory([5, 6, 7], [(1, 3)]), trajectory([8, 9], [(1, 2)])
    batch = Batch.from_groups([group((1.0, a), (0.0, b))], GRPO(), version=0)
    assert [row.leaf for row in batch.rows] == [a.leaf, b.leaf]


@FEW
@given(seed=st.integers(0, 999), budget=st.sampled_from([20, 60, 1000]))
def test_the_packed_model_view_holds_the_padded_rows_tokens_in_order(seed, budget) -> None:
    batch = Batch.from_groups(random_groups(seed, 2, 3), GRPO(), version=3)
    for mb in batch.microbatches(budget, packed=True):
        rows, lengths = mb["model"], mb["lengths"].tolist()
        assert rows.shape == tuple(mb["input_ids"].shape)
        assert rows.labels.tolist() == mb["labels"][mb["loss_mask"]].tolist()
        assert rows.trained is mb["loss_mask"] and rows.places.tolist() == list(range(len(rows.labels)))
        if rows.nodes is None:
            assert min(lengths) == max(lengths) and rows.input_ids is mb["input_ids"] and rows.position_ids is None
            continue
        assert [node.end - node.start for node in rows.nodes] == lengths
        assert all(node.below == node.end for node in rows.nodes)
        flat = torch.cat([row[:n] for row, n in zip(mb["input_ids"], lengths, strict=True)])
        assert torch.equal(rows.input_ids, flat[None])
        marked = torch.cat([row[:n] for row, n in zip(mb["loss_mask"], lengths, strict=True)])
        assert rows.at.tolist() == marked.nonzero()[:, 0].tolist()
    for mb in batch.microbatches(budget):
        assert mb["model"].nodes is None and mb["model"].trained is mb["loss_mask"]


# ---- columns and bytes ----------------------------------------------------------------------------------------------


def assert_same(a: Batch, b: Batch) -> None:
    assert (a.n_tokens, a.n_rows, a.version, dict(a.statistics)) == (
        b.n_tokens,
        b.n_rows,
        b.version,
        dict(b.statistics),
    )
    for mine, other in zip(a.rows, b.rows, strict=True):
        assert (mine.group, mine.episode, mine.share) == (other.group, other.episode, other.share)
    for x, y in zip(a.microbatches(64), b.microbatches(64), strict=True):
        assert x.keys() == y.keys()
        left, right = tensors(x), tensors(y)
        assert all(torch.equal(left[k], right[k]) and left[k].dtype == right[k].dtype for k in left)


@FEW
@given(seed=st.integers(0, 999), world=st.integers(1, 3))
def test_bytes_bring_back_the_same_batch(seed, world) -> None:
    batch = Batch.from_groups(random_groups(seed, 2, 3), GRPO(), version=3)
    batch = batch.with_column("proximal_logprobs", {r.row_id: r.behaviour_logprobs - 1 for r in batch.rows})
    for rank in range(world):
        shard = batch.shard(rank, world)
        assert_same(shard, Batch.from_bytes(shard.to_bytes()))


def test_an_empty_batch_travels_too() -> None:
    batch = Batch.from_groups([], GRPO(), version=7)
    back = Batch.from_bytes(batch.to_bytes())
    assert len(back) == 0 and back.version == 7 and back.microbatches(10) == []
    assert len(back.microbatches(10, count=batch.microbatch_count(10, 2))) == 1


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -1])
def test_broken_bytes_are_refused(cut) -> None:
    data = Batch.from_groups(random_groups(1, 2, 3), GRPO(), version=3).to_bytes()
    with pytest.raises(ValueError, match="not a batch"):
        Batch.from_bytes(data[:cut])


def test_bytes_whose_links_are_broken_are_refused() -> None:
    batch = Batch.from_groups(random_groups(1, 2, 3), GRPO(), version=3)
    data = batch.to_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    for name, wrong in (("segment_parents", 10**6), ("segment_parents", 0), ("row_leaves", 10**6), ("row_leaves", -1)):
        arrays = load(data)
        arrays[name] = np.full_like(arrays[name], wrong)  # a parent of 0 makes the first segment its own
        with pytest.raises(ValueError, match="links"):
            Batch.from_bytes(save(arrays, metadata))
    arrays = load(data) | {"row_leaves": np.zeros_like(load(data)["row_leaves"])}
    with pytest.raises(ValueError, match="length"):
        Batch.from_bytes(save(arrays, metadata))


def test_columns_travel_with_rows_and_are_checked() -> None:
    batch = Batch.from_groups(random_groups(2, 2, 3), GRPO(), version=3)
    values = {r.row_id: np.arange(len(r), dtype=np.float32) for r in batch.rows}
    (mb,) = batch.with_column("reference_logprobs", values).microbatches(10**6)
    for row, n, got in zip(mb["row_ids"].tolist(), mb["lengths"].tolist(), mb["reference_logprobs"], strict=True):
        assert got[:n].tolist() == values[row].tolist() and (got[n:] == 0).all()
    with pytest.raises(ValueError, match="values"):
        batch.with_column("reference_logprobs", {k: v[:-1] for k, v in values.items()})
    with pytest.raises(ValueError, match="not one of"):
        batch.with_column("advantage", values)
    with pytest.raises(KeyError):
        batch.with_column("reference_logprobs", {})
