"""Case A13: an agent gets its task under the names that AReaL's tau2 agent reads, also in a validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tau2_lightning.environment import EnvironmentSettings, TaskRef
from tau2_lightning.environment.settings import UserSettings, environment_settings
from tau2_lightning.rollout.assembly import _agent_data
from tau2_lightning.rollout.collect.collector import Collector, CollectPlan
from tau2_lightning.rollout.episode.runner import EpisodeRunner
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.run.compose import load_config
from tests.cases.foreign import Agent, ask
from tests.rollout.proxy.rig import Rig

# The fields of AReaL's Tau2EnvConfig: its agent calls Tau2EnvConfig(**data["econfig"]), which accepts no others.
FIELDS = {
    "domain", "max_steps", "add_thinking_tool", "solo_mode", "user_llm_base_url", "user_llm", "user_llm_args",
    "turn_discount", "invalid_format_penalty",
}  # fmt: skip


async def test_a13_training_and_validation_tasks_carry_their_split() -> None:
    seen: list[Mapping[str, Any]] = []

    async def play(client: Any, data: Mapping[str, Any]) -> float:
        await ask(client)
        seen.append(data)
        return 1.0

    config = load_config(["domain=telecom", "econfig.max_steps=30"])
    environments = {"telecom": environment_settings(config.econfig)}
    async with (
        Rig(ProxySettings()) as rig,
        episode_access(rig.service, rig.server.base_url, over_http=True, timeout=20) as access,
    ):
        runner = EpisodeRunner(
            Agent(play), rig.store, access, timeout=20, retries=0,
            data_of=lambda task: _agent_data(config, environments, task),
        )  # fmt: skip
        collector = Collector(runner, max_concurrent=1)
        train = iter([TaskRef("telecom", "train", "t1", False, "")])
        await collector.collect(train, CollectPlan(1, 2, filter_groups=False), deadline=20)
        await collector.evaluate([TaskRef("telecom", "test", "v1", False, "")], 1, deadline=20)
    assert [(data["task_id"], data["split"], data["domain"]) for data in seen] == [
        ("t1", "train", "telecom"), ("t1", "train", "telecom"), ("v1", "test", "telecom"),
    ]  # fmt: skip
    assert set(seen[0]["econfig"]) == FIELDS and seen[0]["econfig"]["max_steps"] == 30
    assert {"task", "seed", "sampling"} <= set(seen[0])


def test_a13_the_users_address_is_given_and_its_key_is_not() -> None:
    user = UserSettings("llm", "qwen", "http://u/v1", "a secret key", {"temperature": 0.2})
    config = load_config(["domain=[telecom,retail]", "econfig.user=scripted"])
    environments = {name: EnvironmentSettings(name, user=user) for name in ("telecom", "retail")}
    data = _agent_data(config, environments, TaskRef("retail", "train", "t", False, ""))
    assert data["econfig"]["user_llm_base_url"] == "http://u/v1" and data["econfig"]["user_llm"] == "qwen"
    assert data["econfig"]["domain"] == data["domain"] == "retail", "both must be the domain of the task"
    assert "a secret key" not in str(data)


def test_a13_a_workflow_with_an_econfig_of_its_own_keeps_it() -> None:
    words = ["domain=telecom", "rollout.workflow={_target_: a.B, econfig: {domain: telecom}}"]
    config = load_config(words, check=False)
    environments = {"telecom": environment_settings(config.econfig)}
    data = _agent_data(config, environments, TaskRef("telecom", "test", "t", False, ""))
    assert "econfig" not in data and data["split"] == "test"
