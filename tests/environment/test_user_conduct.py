"""An episode in which the user breaks its rules is kept and counted, excluded, or played again, as configured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from tau2_lightning.environment import Dialogue, EnvironmentSettings, UserSettings, load_tasks
from tau2_lightning.environment.dialogue import SEEDS_APART
from tau2_lightning.environment.user_conduct import FAULTS
from tau2_lightning.errors import UserMisbehaved
from tau2_lightning.rollout.collect.collector import Collector
from tau2_lightning.rollout.episode.runner import EpisodeRunner
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow
from tau2_lightning.rollout.episode.workflow import Access, AgentWorkflow
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionStore
from tests.environment.helpers import play, says, scripted, solo
from tests.environment.test_users import text
from tests.environment.user_server import serving
from tests.rollout.episode.test_runner import take_a_turn
from tests.rollout.proxy.rig import Rig

TASK = load_tasks("retail", "train")[0]
FLIPPED, GOOD, END = text("How can I help you today?"), text("I need help with my order."), text("###STOP###")


def settings(url: str, rule: Any) -> EnvironmentSettings:
    user = UserSettings("llm", llm="user-7b", base_url=url)
    return EnvironmentSettings("retail", user=user, user_faults=rule)


async def outcome(rule: Any, *answers: Any) -> Any:
    async with serving(*answers) as (_, url):
        return (await play(TASK, settings(url, rule), [says("Goodbye!")])).outcome()


async def test_a_kept_episode_counts_the_faults_of_its_user() -> None:
    assert (await outcome("keep", FLIPPED, END)).user_faults == {"speaks_as_agent": 1}
    assert (await outcome("keep", GOOD, END)).user_faults == {}
    assert (await outcome("exclude", GOOD, END)).user_faults == {}


async def test_the_record_shows_a_fault_at_its_turn() -> None:
    messages = (await outcome("keep", FLIPPED, END)).simulation["messages"]
    (noted,) = [message["raw_data"] for message in messages if message.get("raw_data")]
    assert noted == {FAULTS: [{"kind": "speaks_as_agent", "evidence": "how can i help"}]}
    assert messages[1]["raw_data"] is noted


async def test_scripts_and_solo_episodes_have_none() -> None:
    dialogue = await play(TASK, scripted("retail", user_faults="exclude"), [says("Goodbye!")])
    assert dialogue.outcome().user_faults == {}
    alone = Dialogue(load_tasks("telecom", "train", solo_mode=True)[0], solo(user_faults="exclude"))
    await alone.start()
    alone.abort("enough")
    assert alone.outcome().user_faults == {}


@pytest.mark.parametrize(("rule", "again"), [("exclude", False), ("retry", True)])
async def test_an_episode_that_is_no_score_names_the_turn(rule: str, again: bool) -> None:
    with pytest.raises(UserMisbehaved, match="user: speaks_as_agent: message 1: how can i help") as caught:
        await outcome(rule, FLIPPED, END)
    assert (caught.value.component, caught.value.cause, caught.value.again) == ("user", "speaks_as_agent", again)


class Agent:
    def __init__(self, world: EnvironmentSettings, store: SessionStore) -> None:
        self.world, self.store = world, store

    async def run(self, data, *, base_url, api_key, http_client):
        dialogue = Dialogue(data["task"], self.world, seed=data["seed"], user_draw=data.get("user_draw", 0))
        await dialogue.start()
        take_a_turn(self.store, api_key)
        await dialogue.reply(says("Goodbye!"))
        found = dialogue.outcome()
        return {"reward": found.reward, "outcome": found}


async def collected(rule: str, *answers: Any) -> tuple[list[Any], dict[str, int], list[int]]:
    async with serving(*answers) as (server, url):
        access = Access("http://x/v1", http_client=cast("Any", None), client=cast("Any", lambda key: key))
        store = SessionStore()
        agent = cast("AgentWorkflow", Agent(settings(url, rule), store))
        runner = EpisodeRunner(agent, store, access, timeout=60.0, retries=2)
        rollouts, excluded = await Collector(runner, max_concurrent=1).evaluate([TASK], 1, deadline=60.0)
        return rollouts, dict(excluded), [request["seed"] for request in server.requests]


async def test_excluded_at_once_and_counted_by_kind() -> None:
    rollouts, excluded, seeds = await collected("exclude", FLIPPED, END)
    assert not rollouts and excluded == {"user:speaks_as_agent": 1} and len(seeds) == 2


async def test_retried_with_another_draw_of_the_user() -> None:
    rollouts, excluded, seeds = await collected("retry", FLIPPED, END, GOOD, END)
    assert len(rollouts) == 1 and not excluded
    assert [seed - seeds[0] for seed in seeds] == [0, 0, SEEDS_APART, SEEDS_APART]
    rollouts, excluded, seeds = await collected("retry", *[FLIPPED, END] * 3)
    assert not rollouts and excluded == {"user:speaks_as_agent": 1} and len(seeds) == 6


def test_a_rule_that_is_none_is_refused() -> None:
    bad = replace(scripted("retail"), user_faults=cast("Any", "maybe"))
    assert [found.key for found in bad.violations()] == ["econfig.user_faults"]


async def test_a_user_that_ends_at_once_is_drawn_anew_also_where_its_faults_are_kept() -> None:
    async with serving(END, GOOD, END) as (server, url), Rig(ProxySettings()) as rig:
        async with episode_access(rig.service, rig.server.base_url, over_http=False, timeout=20) as access:
            workflow = Tau2Workflow(settings(url, "keep"))
            runner = EpisodeRunner(workflow, rig.store, access, timeout=60.0, retries=1, own=True)
            rollouts, excluded = await Collector(runner, max_concurrent=1).evaluate([TASK], 1, deadline=60.0)
        seeds = [request["seed"] for request in server.requests]
    assert len(rollouts) == 1 and not excluded and runner.faults == {"session:no_turn": 1}
    assert [seed - seeds[0] for seed in seeds] == [0, SEEDS_APART, SEEDS_APART]
