"""Supervised micro-batches: what is trained, what is counted, and how rows are distributed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tau2_lightning.batch.supervised import (
    endless_steps,
    shuffled_steps,
    split_step,
    supervised_batch,
)
from tau2_lightning.policy.dialogues import EncodedDialogue
from tests.batch.groups import tensors


def dialogue(length: int, actions: set[int], first: int = 100) -> EncodedDialogue:
    mask = np.array([i in actions for i in range(length)])
    return EncodedDialogue(np.arange(first, first + length, dtype=np.int32), mask)


def test_labels_are_the_next_tokens_and_only_actions_are_trained() -> None:
    (mb,) = split_step([dialogue(5, {2, 4}), dialogue(3, {0, 1}, first=10)], 100)
    assert mb["input_ids"].tolist() == [[100, 101, 102, 103, 104], [10, 11, 12, 0, 0]]
    assert mb["labels"].tolist() == [[101, 102, 103, 104, 0], [11, 12, 0, 0, 0]]
    # An action at position t is the label at t - 1; no position predicts one at position 0.
    assert mb["loss_mask"].int().tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 0]]
    assert mb["lengths"].tolist() == [5, 3] and float(mb["n_tokens"]) == 3 and float(mb["n_rows"]) == 2
    kinds = {name: tensor.dtype for name, tensor in tensors(mb).items()}
    assert kinds["input_ids"] == kinds["labels"] == kinds["row_ids"] == torch.int64
    assert kinds["loss_mask"] == torch.bool and kinds["versions"] == torch.int32
    assert kinds["behaviour_logprobs"] == kinds["advantages"] == kinds["n_tokens"] == torch.float32


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_and_microbatches_share_a_step_without_losing_or_repeating_rows(world: int) -> None:
    rows = [dialogue(5 + 3 * i, {0, 2, 3 + i}) for i in range(7)]
    labels = sum(int(row.action_mask[1:].sum()) for row in rows)
    assert supervised_batch(rows).n_tokens == labels
    seen, trained = [], 0
    for rank in range(world):
        for mb in split_step(rows, 40, rank=rank, world=world):
            assert mb["input_ids"].numel() <= 40 or len(mb["input_ids"]) == 1
            assert float(mb["n_tokens"]) == labels and float(mb["n_rows"]) == 7
            seen += mb["row_ids"].tolist()
            trained += int(mb["loss_mask"].sum())
    assert sorted(seen) == list(range(7)) and trained == labels


def test_packing_changes_what_the_model_computes_and_nothing_else() -> None:
    rows = [dialogue(5 + 3 * i, {2, 3 + i}) for i in range(7)]
    padded, packed = split_step(rows, 60), split_step(rows, 60, packed=True)
    assert len(packed) < len(padded), "packed rows count their own tokens only"
    by_row = [
        {
            int(row): {key: value[i] for key, value in tensors(mb).items() if value.dim()}
            for i, row in enumerate(mb["row_ids"])
        }
        for mb in (*padded, *packed)
    ]
    apart = {row: columns for found in by_row[: len(padded)] for row, columns in found.items()}
    together = {row: columns for found in by_row[len(padded) :] for row, columns in found.items()}
    assert apart.keys() == together.keys() == set(range(7))
    for row, columns in apart.items():
        size = int(columns["lengths"])
        for key, value in columns.items():
            other = together[row][key]
            assert torch.equal(value[:size], other[:size]) if value.dim() else value == other
    assert all(mb["model"].nodes is None for mb in padded)
    for mb in packed:
        if len(mb["lengths"]) > 1:
            assert mb["model"].input_ids.shape == (1, int(mb["lengths"].sum()))


def test_an_epoch_holds_every_row_once_within_the_budget() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(5, 300) for _ in range(200)] + [5000]
    steps = shuffled_steps(lengths, 1000, rng)
    assert sorted(i for step in steps for i in step) == list(range(201))
    assert all(sum(lengths[i] for i in step) <= 1000 or len(step) == 1 for step in steps)
    assert len(steps) < 1.3 * sum(lengths) / 1000, "steps are full"


def test_a_step_mixes_lengths() -> None:
    """Rows of one length are of one kind; a policy that saw one kind per step did not learn to distinguish them."""
    lengths = [10] * 500 + [100] * 500
    within = [{lengths[i] for i in step} for step in shuffled_steps(lengths, 1000, random.Random(0))]
    assert sum(kinds == {10, 100} for kinds in within) > 0.95 * len(within)


def test_steps_go_on_for_ever_and_follow_the_seed() -> None:
    lengths = [10, 20, 30, 40]

    def first_ten(seed: int) -> list[list[int]]:
        return [step for step, _ in zip(endless_steps(lengths, 40, seed), range(10), strict=False)]

    assert len(first_ten(1)) == 10 and first_ten(1) == first_ten(1) != first_ten(2)
    with pytest.raises(ValueError, match="no dialogues"):
        next(endless_steps([], 40, 0))
