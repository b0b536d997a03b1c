"""Checks that stop a run when nothing was played in a batch or a validation, so that there is nothing to learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tau2_lightning.errors import NothingPlayed
from tau2_lightning.trajectory import Rollout

from .collector import Collection


def check_collection(collection: Collection) -> None:
    """Raises NothingPlayed, with the causes, when every group lost its episodes to faults."""
    if collection.excluded and not any(group.rollouts for group in collection.all_groups):
        problem = "no group of this batch has two finished episodes, so there is nothing to learn from"
        raise NothingPlayed(f"{problem}; excluded: {_in_words(collection.excluded)}")


def check_evaluation(rollouts: Sequence[Rollout], excluded: Mapping[str, int], domain: str) -> None:
    """Raises NothingPlayed, with the causes, when no episode of a validation was finished."""
    if excluded and not rollouts:
        problem = f"no episode of the validation of {domain} was finished, so there is no score"
        raise NothingPlayed(f"{problem}; excluded: {_in_words(excluded)}")


def check_trained(groups: int, tokens: int, statistics: Mapping[str, float]) -> None:
    """Raises NothingPlayed when ``groups`` groups with a signal have no token to train on.

    ``tokens`` is the number of trained tokens. ``statistics`` are those of the batch: they count what was left out.
    """
    if not groups or tokens:
        return
    kinds = {
        "altered_tokens": "tokens sampled by another distribution than gconfig's (temperature, top_p, a grammar, ...)",
        "nonfinite_tokens": "tokens without a finite log-probability",
        "truncated_tokens": "tokens of cut-off turns or episodes (algorithm.mask_truncated)",
    }
    causes = [f"{statistics[name]:.0f} {words}" for name, words in kinds.items() if statistics.get(name)]
    problem = f"none of the {groups} groups of this batch has a token to train on"
    raise NothingPlayed(f"{problem}; left out: {', '.join(causes) or 'everything, for no cause that is counted'}")


def _in_words(excluded: Mapping[str, int]) -> str:
    return ", ".join(f"{cause} {n}" for cause, n in Counter(excluded).most_common())
