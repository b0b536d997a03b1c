"""Small groups of rollouts for the tests of batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
from torch import Tensor

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.trajectory import Group, Rollout, Trajectory, Turn


def trajectory(tokens, sampled, *, version=0, turns=None, logprobs=None, branch=0) -> Trajectory:
    """A row whose sampled tokens are those of the half-open spans ``sampled``; one turn a span."""
    mask = np.zeros(len(tokens), np.bool_)
    for start, end in sampled:
        mask[start:end] = True
    lp = np.where(mask, -(np.arange(len(tokens)) + 1) / 10, 0).astype(np.float32)
    if logprobs is not None:
        lp = np.asarray(logprobs, np.float32)
    turns = tuple(Turn(s, e) for s, e in sampled) if turns is None else turns
    return Trajectory.of(tokens, lp, np.where(mask, version, -1).astype(np.int32), turns, branch)


def group(*rollouts: tuple[float, Trajectory], name: str = "g") -> Group:
    return Group(name, name, tuple(Rollout(name, name, i, r, (t,)) for i, (r, t) in enumerate(rollouts)))


def random_groups(seed: int, n_groups: int, n_samples: int) -> list[Group]:
    """Groups whose rollouts share a prompt, with ragged multi-turn rows over a tiny vocabulary."""
    rng = np.random.default_rng(seed)
    groups = []
    for g in range(n_groups):
        prompt = [90 + g, *rng.integers(0, 3, int(rng.integers(1, 6)))]
        rollouts = []
        for _ in range(n_samples):
            tokens, spans = list(prompt), []
            for _ in range(int(rng.integers(1, 4))):
                spans.append((len(tokens), len(tokens) + int(rng.integers(1, 5))))
                tokens += list(rng.integers(0, 3, spans[-1][1] - spans[-1][0]))
                tokens += list(rng.integers(0, 3, int(rng.integers(0, 4))))
            rollouts.append((float(rng.random() < 0.5), trajectory(tokens, spans, version=int(rng.integers(0, 3)))))
        groups.append(group(*rollouts, name=f"g{g}"))
    return groups


def tensors(mb: MicroBatch) -> dict[str, Tensor]:
    """The columns that a loss reads: every key but ``model``."""
    return {name: cast("Tensor", value) for name, value in mb.items() if name != "model"}


def loss_of(
    algorithm: PolicyGradient, logprobs: Tensor, entropy: Tensor, mb: MicroBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    """The algorithm's loss of a collated micro-batch, called as GRPOModule calls it."""
    return algorithm.loss(logprobs, entropy, cast("Mapping[str, Tensor]", mb))
