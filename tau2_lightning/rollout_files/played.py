"""What rank 0 hands over after a batch or a validation was played, before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tau2_lightning.batch.batch import Batch
from tau2_lightning.rollout.collect.collector import Collection
from tau2_lightning.rollout.episode.attempts import FailedAttempt
from tau2_lightning.trajectory import Rollout


@dataclass(frozen=True)
class PlayedBatch:
    """The episodes of training batch ``step`` (from 0), trained at weight version ``version``.

    ``batch`` is what is learnt from; None when the batch broke off. ``splits`` and ``stamps`` are by domain.
    """

    step: int
    version: int
    collection: Collection
    failed: Sequence[FailedAttempt]
    batch: Batch | None
    splits: Mapping[str, str]
    stamps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class PlayedValidation:
    """The episodes of validation ``number`` of a start, of one domain, after ``step`` training batches."""

    step: int
    number: int
    domain: str
    split: str
    rollouts: Sequence[Rollout]
    failed: Sequence[FailedAttempt]
    stamp: Mapping[str, Any] = field(default_factory=dict)


Played: TypeAlias = PlayedBatch | PlayedValidation
