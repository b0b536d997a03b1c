"""Episodes in which the user breaks its rules, through the runner: excluded, played again, or drawn anew."""

from __future__ import annotations

from typing import Any, cast

from tau2_lightning.environment import Dialogue, EnvironmentSettings
from tau2_lightning.environment.dialogue import SEEDS_APART
from tau2_lightning.rollout.collect.collector import Collector
from tau2_lightning.rollout.episode.runner import EpisodeRunner
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow
from tau2_lightning.rollout.episode.workflow import Access, AgentWorkflow
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionStore
from tests.environment.helpers import says
from tests.environment.test_user_conduct import END, FLIPPED, GOOD, TASK, settings
from tests.environment.user_server import serving
from tests.rollout.episode.test_runner import take_a_turn
from tests.rollout.proxy.rig import Rig


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


async def test_a_user_that_ends_at_once_is_drawn_anew_also_where_its_faults_are_kept() -> None:
    async with serving(END, GOOD, END) as (server, url), Rig(ProxySettings()) as rig:
        async with episode_access(rig.service, rig.server.base_url, over_http=False, timeout=20) as access:
            workflow = Tau2Workflow(settings(url, "keep"))
            runner = EpisodeRunner(workflow, rig.store, access, timeout=60.0, retries=1, own=True)
            rollouts, excluded = await Collector(runner, max_concurrent=1).evaluate([TASK], 1, deadline=60.0)
        seeds = [request["seed"] for request in server.requests]
    assert len(rollouts) == 1 and not excluded and runner.faults == {"session:no_turn": 1}
    assert [seed - seeds[0] for seed in seeds] == [0, SEEDS_APART, SEEDS_APART]
