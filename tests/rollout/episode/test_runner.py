"""Retries, exclusion and export of one episode, with fake workflows over the real session store."""

import asyncio
from collections.abc import Callable
from typing import cast

import httpx
import pytest

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault
from tau2_lightning.rollout.episode.client import PolicyClient
from tau2_lightning.rollout.episode.runner import EpisodeRequest, EpisodeRunner
from tau2_lightning.rollout.episode.workflow import Access, AgentWorkflow
from tau2_lightning.rollout.session.store import SessionStore


class Workflow:
    """Answers with the results in turn; raises those that are exceptions, sleeps through those that are None."""

    def __init__(self, *results):
        self.results, self.calls = list(results), []

    async def run(self, data, *, base_url, api_key, http_client, client, **kwargs):
        self.calls.append((data["task_id"], api_key))
        assert (base_url, client) == (ACCESS.base_url, api_key) and http_client is ACCESS.http_client
        result = self.results.pop(0)
        if result is None:
            await asyncio.sleep(60)
        if isinstance(result, BaseException):
            raise result
        return result


# The clients of these sessions are their keys.
ACCESS = Access(
    "http://x/v1",
    http_client=cast("httpx.AsyncClient", object()),
    client=cast("Callable[[str], PolicyClient]", lambda key: key),
)
REQUEST = EpisodeRequest(task=None, task_id="t1", group_id="7", sample=2, seed=5)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    real = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: real(min(seconds, 0.2)))


async def play(*results, retries=2, timeout=5.0):
    store = SessionStore()
    workflow = Workflow(*results)
    runner = EpisodeRunner(workflow, store, ACCESS, timeout=timeout, retries=retries)
    try:
        return await runner.run(REQUEST), runner, workflow, store
    except InfrastructureFault as fault:
        return fault, runner, workflow, store


class Plain:
    """Knows an OpenAI URL and nothing else."""

    async def run(self, data, *, base_url, api_key, http_client):
        return 1.0


async def test_a_class_that_takes_no_client_is_given_none():
    runner = EpisodeRunner(cast("AgentWorkflow", Plain()), SessionStore(), ACCESS, timeout=5.0, retries=0)
    assert (await runner.run(REQUEST)).reward == 1.0


async def test_a_number_is_a_reward():
    rollout, _, _, store = await play(0.5)
    assert (rollout.task_id, rollout.group_id, rollout.sample, rollout.reward) == ("t1", "7", 2, 0.5)
    assert len(store) == 0


async def test_faults_are_retried_in_fresh_sessions_and_counted():
    fault = InfrastructureFault("engine", "crash")
    rollout, runner, workflow, store = await play(fault, fault, {"reward": 1.0})
    assert rollout.reward == 1.0
    assert runner.faults == {"engine:crash": 2}
    assert len({key for _, key in workflow.calls}) == 3
    assert len(store) == 0
    assert store.counters["aborted"] == 2


async def test_the_last_fault_is_raised_not_scored():
    outcome, *_ = await play(*[InfrastructureFault("user", "timeout")] * 3)
    assert isinstance(outcome, InfrastructureFault)
    assert outcome.component == "user"


async def test_an_episode_that_never_ends_is_a_fault_of_its_own():
    store, workflow = SessionStore(), Workflow(0.0)

    class Hangs(Workflow):
        async def run(self, data, **kwargs):
            await asyncio.Event().wait()

    runner = EpisodeRunner(Hangs(), store, ACCESS, timeout=0.05, retries=0)
    with pytest.raises(DeadlineExceeded, match="playing task t1"):
        await runner.run(REQUEST)
    assert len(store) == 0
    assert workflow.calls == []


async def test_a_defect_is_not_retried():
    with pytest.raises(ZeroDivisionError):
        await play(ZeroDivisionError())
