"""Two hundred tau2 episodes through proxy and engine, during weight syncs: every exported log-prob equals that
of a transformers forward with the weights that the token's version names."""

from __future__ import annotations

import asyncio

import pytest

from tau2_lightning.environment import EnvironmentSettings, UserSettings, load_tasks
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.episode.runner import EpisodeRequest, EpisodeRunner
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tau2_lightning.trajectory import Rollout
from tests.e2e.front import Front

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

TOLERANCE = 1e-4
CONCURRENT = 32
# The user is scripted, so that an untrained policy's dialogues have several turns.
SETTINGS = EnvironmentSettings("telecom", max_steps=10, policy="none", user=UserSettings("scripted"))
SERVED = {70: "A", 71: "B", 72: "A", 73: "B"}


def turns(front: Front) -> int:
    """Number of turns sampled so far."""
    return front.store.counters["turns"] + sum(session.turns for session in front.store.sessions())


async def played(engine_pool: EnginePool, front: Front, publisher: WeightPublisher, reference, count: int):
    """``count`` episodes; the next version is published after each turn that an episode has had on average."""
    tasks = load_tasks("telecom", "train")
    gate, rollouts = asyncio.Semaphore(CONCURRENT), list[Rollout]()
    async with episode_access(front.service, front.server.base_url, over_http=False, timeout=120) as as_in_a_run:
        workflow = Tau2Workflow(SETTINGS, {"temperature": 1.0, "max_tokens": 20})
        runner = EpisodeRunner(workflow, front.store, as_in_a_run, timeout=300, retries=0)

        async def episode(number: int) -> None:
            async with gate:
                task = tasks[number % len(tasks)]
                request = EpisodeRequest(task, task.task_id, str(number), sample=0, seed=number)
                rollouts.append(await runner.run(request))

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(episode(number))
            for version, name in list(SERVED.items())[1:]:
                while turns(front) < count * (version - 70) and len(rollouts) < count:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                await publisher.publish(version, reference.buckets(name), mode="keep")
    return rollouts


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
async def test_exported_logprobs_are_those_of_the_named_weights(engine_pool, reference, count):
    publisher = WeightPublisher(engine_pool)
    await publisher.publish(70, reference.buckets(SERVED[70]), mode="keep")
    async with Front(engine_pool, reference) as front:
        rollouts = await played(engine_pool, front, publisher, reference, count)
    rows = [row for rollout in rollouts for row in rollout.trajectories]
    assert len(rollouts) == len(rows) == count  # no session branched
    worst, mistaken, tokens, mixed = 0.0, 0.0, dict.fromkeys(SERVED, 0), 0
    for row in rows:
        ids = row.token_ids.tolist()
        expected = {name: [0.0, *reference.logprobs(name, ids)] for name in "AB"}
        versions = set(row.versions[row.loss_mask].tolist())
        assert versions <= set(SERVED)
        mixed += len(versions) > 1
        for at in row.loss_mask.nonzero()[0]:
            name = SERVED[int(row.versions[at])]
            tokens[int(row.versions[at])] += 1
            worst = max(worst, abs(expected[name][at] - float(row.logprobs[at])))
            mistaken = max(mistaken, abs(expected["BA"["AB".index(name)]][at] - float(row.logprobs[at])))
    assert worst < TOLERANCE, worst
    assert mistaken > 0.1  # negative control: the other weights would have been noticed
    assert min(tokens.values()) > 10, tokens  # how many of each version depends on the load of the machine
    assert mixed >= CONCURRENT // 4, mixed  # sessions that were in progress when the weights changed
    assert sum(len(row.turns) for row in rows) >= 2 * count
    print(f"{count} sessions, {sum(tokens.values())} tokens {tokens}, {mixed} mixed, max difference {worst:.2e}")
