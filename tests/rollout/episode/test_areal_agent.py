"""Case A13: AReaL's own agent class plays training and validation tasks unchanged. AREAL_SOURCE names its checkout."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import load_tasks
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.assembly import _agent_data
from tau2_lightning.rollout.collect.collector import Collector, CollectPlan
from tau2_lightning.rollout.episode.runner import EpisodeRequest, EpisodeRunner
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.run.compose import load_config
from tests.rollout.episode.areal_source import agent_class
from tests.rollout.proxy.rig import Rig

SOURCE = os.environ.get("AREAL_SOURCE", "")
pytestmark = pytest.mark.skipif(not SOURCE, reason="AREAL_SOURCE names no checkout of AReaL's repository")


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@asynccontextmanager
async def areal(monkeypatch: pytest.MonkeyPatch, words: list[str], rig: Rig) -> AsyncIterator[EpisodeRunner]:
    """An episode runner with AReaL's class, set up as in a run with the overrides ``words``."""
    config: RunConfig = load_config(["domain=telecom", *words])
    environments = {"telecom": environment_settings(config.econfig)}
    workflow = agent_class(Path(SOURCE), monkeypatch)()
    rig.engine._max_model_len = 10**6  # in bytes, because each byte is a token of this tokenizer
    async with episode_access(rig.service, rig.server.base_url, over_http=True, timeout=60) as access:
        yield EpisodeRunner(
            workflow, rig.store, access, timeout=120, retries=0,
            data_of=lambda task: _agent_data(config, environments, task),
        )  # fmt: skip


async def test_it_plays_training_and_validation_tasks_solo(monkeypatch: pytest.MonkeyPatch) -> None:
    solo = ["econfig.solo_mode=true", "econfig.max_steps=20"]
    async with Rig(ProxySettings()) as rig, areal(monkeypatch, solo, rig) as runner:
        collector = Collector(runner, max_concurrent=1)
        for split in ("train", "test"):
            task = load_tasks("telecom", split, solo_mode=True)[0]
            rig.engine.calls.clear()
            rig.engine.script.extend([call("get_customer_by_phone", phone_number="555-123-2002"), call("done")] * 2)
            if split == "train":
                plan = CollectPlan(1, 2, filter_groups=False)
                collection = await collector.collect(iter([task]), plan, deadline=120)
                assert not collection.excluded, collection.excluded
                rollouts = [rollout for group in collection.groups for rollout in group.rollouts]
            else:
                greedy = {"temperature": 0.0}
                rollouts, excluded = await collector.evaluate([task], 2, deadline=120, sampling=greedy)
                assert not excluded, excluded
            # Both turns are in one row, because the agent sends back the sampled turns unchanged.
            assert [[len(row.turns) for row in rollout.trajectories] for rollout in rollouts] == [[2], [2]]
            assert [rollout.reward for rollout in rollouts] == [0.0, 0.0]
            assert {sampling.temperature for _, sampling, _ in rig.engine.calls} == {1.0 if split == "train" else 0.0}


async def test_it_talks_to_the_user_that_the_run_names(monkeypatch: pytest.MonkeyPatch) -> None:
    # AReaL's agent uses the key `dummy` for the user's server.
    async with Rig(ProxySettings(client_key="dummy")) as user, Rig(ProxySettings()) as rig:
        user.engine._max_model_len = 10**6
        user.engine.script.extend(["Hi, my phone shows no service.", "Thanks. ###STOP###"])
        rig.engine.script.extend(["Please restart it. Does it work now?"])
        words = ["econfig.solo_mode=false", f"econfig.user_llm_base_url={user.server.base_url}", "econfig.user_llm=u"]
        async with areal(monkeypatch, words, rig) as runner:
            task = load_tasks("telecom", "test")[0]
            rollout = await runner.run(EpisodeRequest(task, task.task_id, "g", sample=0, seed=1))
        assert rollout.reward == 0.0 and [len(row.turns) for row in rollout.trajectories] == [1]
        assert len(user.engine.calls) == 2


async def test_a_failure_that_it_scores_as_0_is_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    """AReaL's agent catches every exception of a dialogue and returns 0.0."""
    async with Rig(ProxySettings()) as rig, areal(monkeypatch, ["econfig.solo_mode=true"], rig) as runner:
        rig.engine.fault = InfrastructureFault("engine", "crash")
        task = load_tasks("telecom", "test", solo_mode=True)[0]
        with pytest.raises(InfrastructureFault) as caught:
            await runner.run(EpisodeRequest(task, task.task_id, "g", sample=0, seed=1))
        assert caught.value.name == "engine:crash"
