"""Supervised fine-tuning data: encoded dialogues as rows of a batch, cut into optimizer steps and micro-batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np

from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.policy.dialogues import EncodedDialogue
from tau2_lightning.segments import Segment

from .batch import Batch
from .rows import Row


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


def steps_of_epochs(lengths: Sequence[int], tokens_per_step: int, seed: int, epochs: int) -> int:
    """The number of steps in the first ``epochs`` epochs of `endless_steps`."""
    rng = random.Random(seed)
    return sum(len(shuffled_steps(lengths, tokens_per_step, rng)) for _ in range(epochs))


def supervised_batch(dialogues: Sequence[EncodedDialogue]) -> Batch:
    """One optimizer step of dialogues: rows whose trained labels are the actions, ``row_id`` their index.

    Advantages are 1 and behaviour log-probs 0 at trained labels, so a cross-entropy loss needs neither. An action at
    the very start is not trained: nothing predicts it.
    """
    return Batch.from_rows([_row(number, dialogue) for number, dialogue in enumerate(dialogues)])


def split_step(
    dialogues: Sequence[EncodedDialogue],
    max_tokens_per_mb: int,
    *,
    rank: int = 0,
    world: int = 1,
    packed: bool = False,
    shared: bool = False,
    trunk_weight: float = 0.0,
) -> list[MicroBatch]:
    """This data-parallel rank's micro-batches of one optimizer step.

    Rows are dealt out by length, so that ranks carry about the same load; a micro-batch holds at most
    ``max_tokens_per_mb`` tokens unless a single row is longer. A rank may get none. ``packed`` lays rows side by side
    for the model; with ``shared``, tokens that rows share are computed once (see `Batch.microbatches`, also about
    ``trunk_weight``).
    """
    part = supervised_batch(dialogues).shard(rank, world, shared=shared)
    return part.microbatches(max_tokens_per_mb, packed=packed, shared=shared, trunk_weight=trunk_weight)


def _row(number: int, dialogue: EncodedDialogue) -> Row:
    mask = np.zeros(len(dialogue), np.bool_)
    mask[:-1] = dialogue.action_mask[1:]
    return Row(
        row_id=number,
        leaf=Segment.of(dialogue.token_ids),
        loss_mask=mask,
        behaviour_logprobs=np.zeros(len(mask), np.float32),
        advantages=mask.astype(np.float32),
        versions=np.where(mask, 0, -1).astype(np.int32),
    )
