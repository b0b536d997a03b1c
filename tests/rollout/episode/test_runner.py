"""Retries, exclusion and export of one episode, with fake workflows and the real session store."""

import asyncio
from collections.abc import Callable
from typing import cast

import httpx
import pytest

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault, WorkflowFault
from tau2_lightning.rollout.engine.generation import Generation
from tau2_lightning.rollout.episode.client import PolicyClient
from tau2_lightning.rollout.episode.runner import EpisodeRequest, EpisodeRunner
from tau2_lightning.rollout.episode.workflow import Access, AgentWorkflow
from tau2_lightning.rollout.session.store import SessionSettings, SessionStore
from tau2_lightning.rollout.session.tree import Node

USER = [{"role": "user", "content": "x"}]


def take_a_turn(store: SessionStore, api_key: str) -> None:
    """Record a turn as the proxy does after a completion, because an episode without a turn is a fault."""
    session = store.authenticate(api_key)
    assert session is not None
    reply = {"role": "assistant", "content": "y"}
    session.add(Node(None, USER, reply, [1], Generation((2,), (-0.5,), (0,), "stop"), "chatcmpl-1"))


class Workflow:
    """Each run uses the next of ``results``: it raises an exception, sleeps for None, and otherwise takes a turn and
    returns the result."""

    def __init__(self, store, *results):
        self.store, self.results, self.calls = store, list(results), []

    async def run(self, data, *, base_url, api_key, http_client, client, **kwargs):
        self.calls.append((data["task_id"], api_key))
        assert (base_url, client) == (ACCESS.base_url, api_key) and http_client is ACCESS.http_client
        result = self.results.pop(0)
        if result is None:
            await asyncio.sleep(60)
        if isinstance(result, BaseException):
            raise result
        take_a_turn(self.store, api_key)
        return result


# Here the client of a session is just its key.
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


async def play(*results, retries=2, timeout=5.0, own=False):
    store = SessionStore()
    workflow = Workflow(store, *results)
    runner = EpisodeRunner(workflow, store, ACCESS, timeout=timeout, retries=retries, own=own)
    try:
        return await runner.run(REQUEST), runner, workflow, store
    except InfrastructureFault as fault:
        return fault, runner, workflow, store


class Plain:
    """A workflow whose ``run`` accepts no ``client``."""

    def __init__(self, store):
        self.store = store

    async def run(self, data, *, base_url, api_key, http_client):
        take_a_turn(self.store, api_key)
        return 1.0


async def test_a_class_that_takes_no_client_is_given_none():
    store = SessionStore()
    runner = EpisodeRunner(cast("AgentWorkflow", Plain(store)), store, ACCESS, timeout=5.0, retries=0)
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
    store = SessionStore()
    workflow = Workflow(store, 0.0)

    class Hangs(Workflow):
        async def run(self, data, **kwargs):
            await asyncio.Event().wait()

    runner = EpisodeRunner(Hangs(store), store, ACCESS, timeout=0.05, retries=0)
    with pytest.raises(DeadlineExceeded, match="playing task t1"):
        await runner.run(REQUEST)
    assert len(store) == 0
    assert workflow.calls == []


async def test_a_defect_of_our_own_workflow_is_raised_as_it_is_and_not_retried():
    with pytest.raises(ZeroDivisionError):
        await play(ZeroDivisionError(), own=True)


async def test_an_exception_of_a_users_workflow_is_the_fault_of_one_episode_and_not_retried():
    outcome, runner, _, store = await play(ZeroDivisionError("x"), 1.0)
    assert isinstance(outcome, WorkflowFault) and outcome.name == "workflow:ZeroDivisionError"
    assert isinstance(outcome.__cause__, ZeroDivisionError)
    assert runner.faults == {"workflow:ZeroDivisionError": 1} and len(store) == 0


async def test_too_many_sessions_is_a_fault():
    store = SessionStore(SessionSettings(max_sessions=0))
    runner = EpisodeRunner(Workflow(store, 1.0), store, ACCESS, timeout=5.0, retries=0)
    with pytest.raises(InfrastructureFault, match="session: too_many_sessions"):
        await runner.run(REQUEST)


async def test_a_session_that_is_reaped_or_ended_under_its_episode_is_a_fault():
    store = SessionStore()

    class Ends(Workflow):
        async def run(self, data, *, api_key, **kwargs):
            take_a_turn(store, api_key)
            session = store.authenticate(api_key)
            assert session is not None
            if self.results.pop(0) == "ends":
                store.close(session.session_id)
            else:
                store.abort(session.session_id)
            return 1.0

    runner = EpisodeRunner(Ends(store, "reaped", "ends"), store, ACCESS, timeout=5.0, retries=1)
    with pytest.raises(WorkflowFault, match="session_closed"):
        await runner.run(REQUEST)
    assert runner.faults == {"session:gone": 1, "workflow:session_closed": 1}
