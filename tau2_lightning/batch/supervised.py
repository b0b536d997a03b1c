"""Supervised micro-batches: encoded dialogues as the dictionaries that strategies take."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tau2_lightning.policy.dialogues import EncodedDialogue


def shuffled_steps(lengths: Sequence[int], tokens_per_step: int, rng: random.Random) -> list[list[int]]:
    """Indices of one epoch in random order, cut into optimizer steps of at most ``tokens_per_step`` tokens.

    Rows are not grouped by length, although that would save padding: dialogues of one length are of one kind, and a
    step of one kind unlearns the others. A row longer than ``tokens_per_step`` is a step of its own.
    """
    steps: list[list[int]] = []
    current: list[int] = []
    size = 0
    for i in rng.sample(range(len(lengths)), len(lengths)):
        if current and size + lengths[i] > tokens_per_step:
            steps.append(current)
            current, size = [], 0
        current.append(i)
        size += lengths[i]
    if current:
        steps.append(current)
    return steps


def endless_steps(lengths: Sequence[int], tokens_per_step: int, seed: int) -> Iterator[list[int]]:
    """Steps of epoch after epoch, without end; deterministic in ``seed``. Raises ValueError when there are no rows."""
    if not lengths:
        raise ValueError("no dialogues to learn from")
    rng = random.Random(seed)
    while True:
        yield from shuffled_steps(lengths, tokens_per_step, rng)


def supervised_microbatch(
    dialogues: Sequence[EncodedDialogue],
    *,
    row_ids: Sequence[int] | None = None,
    n_tokens: int | None = None,
    n_rows: int | None = None,
) -> dict[str, Tensor]:
    """One micro-batch (keys, shapes and dtypes: docs/architecture.md) whose trained labels are the actions.

    Advantages are 1 and behaviour log-probs 0, so a cross-entropy loss needs neither. ``n_tokens`` and ``n_rows`` are
    the global counts of the optimizer step; by default those of this micro-batch.
    """
    rows, width = len(dialogues), max(len(dialogue) for dialogue in dialogues)
    input_ids = torch.zeros(rows, width, dtype=torch.int64)
    acted = torch.zeros(rows, width, dtype=torch.bool)
    for row, dialogue in enumerate(dialogues):
        input_ids[row, : len(dialogue)] = torch.from_numpy(dialogue.token_ids).long()
        acted[row, : len(dialogue)] = torch.from_numpy(dialogue.action_mask)
    lengths = torch.tensor([len(dialogue) for dialogue in dialogues], dtype=torch.int64)
    real = torch.arange(width) < lengths[:, None]
    loss_mask = _shift_left(acted)
    trained = loss_mask.float()
    return {
        "input_ids": input_ids,
        "position_ids": torch.arange(width).expand(rows, width) * real,
        "labels": _shift_left(input_ids),
        "loss_mask": loss_mask,
        "behaviour_logprobs": torch.zeros(rows, width),
        "advantages": trained,
        "versions": torch.where(loss_mask, 0, -1).to(torch.int32),
        "row_ids": torch.tensor(list(row_ids) if row_ids is not None else range(rows), dtype=torch.int64),
        "lengths": lengths,
        "n_tokens": torch.tensor(float(trained.sum() if n_tokens is None else n_tokens)),
        "n_rows": torch.tensor(float(rows if n_rows is None else n_rows)),
    }


def trained_labels(dialogue: EncodedDialogue) -> int:
    """How many labels of a dialogue carry loss: actions, except one at the very start, which nothing predicts."""
    return int(dialogue.action_mask[1:].sum())


def split_step(
    dialogues: Sequence[EncodedDialogue], max_tokens_per_mb: int, *, rank: int = 0, world: int = 1
) -> list[dict[str, Tensor]]:
    """This data-parallel rank's micro-batches of one optimizer step.

    Rows are dealt out by length, so that ranks carry about the same load; a micro-batch holds at most
    ``max_tokens_per_mb`` padded tokens unless a single row is longer. A rank may get none.
    """
    n_tokens = sum(map(trained_labels, dialogues))
    order = sorted(range(len(dialogues)), key=lambda i: -len(dialogues[i]))[rank::world]
    microbatches: list[dict[str, Tensor]] = []
    while order:
        count = max(1, max_tokens_per_mb // len(dialogues[order[0]]))
        rows, order = order[:count], order[count:]
        members = [dialogues[row] for row in rows]
        microbatches.append(supervised_microbatch(members, row_ids=rows, n_tokens=n_tokens, n_rows=len(dialogues)))
    return microbatches


def _shift_left(values: Tensor) -> Tensor:
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
