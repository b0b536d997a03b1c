"""The filter keeps the groups whose episodes get different advantages, whatever the reason."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import pytest
import torch

from tau2_lightning.algorithm import GRPO, DrGRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.crediting import teaches
from tau2_lightning.rollout.collect.collector import Collection, Collector, CollectPlan
from tau2_lightning.rollout.episode.runner import EpisodeRequest, EpisodeRunner
from tau2_lightning.telemetry.step_metrics import rollout_metrics
from tau2_lightning.trajectory import Group, Rollout, Trajectory, Turn
from tests.batch.groups import loss_of, trajectory


@dataclass(frozen=True)
class Task:
    task_id: str


class AllFail:
    """Every episode fails; in every second task, some also have a malformed call. Later samples are longer."""

    async def run(self, request: EpisodeRequest) -> Rollout:
        size = 3 + request.sample
        malformed = int(request.task_id) % 2 == 1 and request.sample == 0
        row = trajectory(np.arange(size), [(1, size)], turns=(Turn(1, size, invalid_format=malformed),))
        return Rollout(request.task_id, request.group_id, request.sample, 0.0, (row,))


async def collected(algorithm: GRPO) -> Collection:
    tasks = (Task(str(i)) for i in itertools.count())
    plan = CollectPlan(4, 3, signal=partial(teaches, algorithm=algorithm))
    collector = Collector(cast("EpisodeRunner", AllFail()), max_concurrent=9)
    return await collector.collect(tasks, plan, deadline=5)


@pytest.mark.parametrize(
    ("algorithm", "kept"),
    [
        (GRPO(), []),
        (GRPO(turn_discount=0.9), []),
        (GRPO(invalid_format_penalty=0.1), ["1", "3"]),
        (DrGRPO(overlong_max_length=4, overlong_buffer=2), ["0", "1", "2", "3"]),
        (GRPO(invalid_format_penalty=0.1, reward_bias=1.0, reward_clip=0.5), []),
    ],
    ids=["outcome", "discount", "penalty", "overlong", "clipped"],
)
async def test_the_filter_keeps_what_the_algorithm_can_learn_from(algorithm: GRPO, kept: list[str]) -> None:
    found = await collected(algorithm)
    assert [group.task_id for group in found.groups] == kept
    assert len(found.dropped) == 4 - len(kept)
    batch = Batch.from_groups(found.all_groups, algorithm, version=0)
    by_group = np.array_split([bool(row.advantages.any()) for row in batch.rows], 4)
    assert sum(flags.any() for flags in by_group) == len(kept), "the filter and the advantages disagree"
    metrics = rollout_metrics(found, 1.0, signal=partial(teaches, algorithm=algorithm))
    assert metrics["frac_reward_zero_std"] == 1 - len(kept) / 4 == batch.statistics["zero_variance_groups"]


def test_a_group_in_which_everything_fails_has_no_gradient():
    def group(number: str, rewards) -> Group:
        row = Trajectory.of(range(4), np.full(4, -0.7, np.float32), np.array([-1, 0, 0, 0], np.int32), (Turn(1, 4),))
        return Group(number, number, tuple(Rollout(number, number, i, r, (row,)) for i, r in enumerate(rewards)))

    def gradient(*groups: Group) -> torch.Tensor:
        algorithm = GRPO()
        (mb,) = Batch.from_groups(groups, algorithm, version=0).microbatches(1000)
        logprobs = mb["behaviour_logprobs"].clone().requires_grad_()
        loss, _ = loss_of(algorithm, logprobs, torch.zeros_like(logprobs), mb)
        loss.backward()
        assert logprobs.grad is not None
        return logprobs.grad

    assert gradient(group("0", [0.0, 0.0, 0.0])).abs().max() == 0
    assert gradient(group("0", [0.0, 0.0, 1.0])).abs().max() > 0.01
    mixed = gradient(group("0", [0.0, 0.0, 0.0]), group("1", [0.0, 0.0, 1.0]))
    assert (mixed.abs().sum(1) > 0).sum() == 3, "only the rows of the group with signal have a gradient"
