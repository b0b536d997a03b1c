"""User-written agents are loaded by name; a refusal names the config key."""

from __future__ import annotations

from typing import Any

import pytest

from tau2_lightning.errors import ConfigError
from tau2_lightning.rollout.episode.workflow import AgentWorkflow, load_workflow


class Echo:
    def __init__(self, reward: float = 1.0) -> None:
        self.reward = reward

    async def run(self, data: Any, *, base_url: str, api_key: str, http_client: Any, **_: Any) -> float:
        return self.reward


class NoRun:
    pass


async def test_a_class_is_loaded_with_its_arguments() -> None:
    workflow = load_workflow({"_target_": f"{__name__}.Echo", "reward": 0.5})
    assert isinstance(workflow, AgentWorkflow)
    connection: dict[str, Any] = {"base_url": "", "api_key": "", "http_client": None, "client": None}
    assert await workflow.run({}, **connection) == 0.5


@pytest.mark.parametrize(
    "config",
    [{}, {"_target_": "NoDots"}, {"_target_": "no.such.module.X"}, {"_target_": f"{__name__}.Missing"},
     {"_target_": f"{__name__}.NoRun"}, {"_target_": f"{__name__}.Echo", "colour": "red"}],
)  # fmt: skip
def test_what_cannot_be_loaded_names_the_key(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.workflow\._target_"):
        load_workflow(config)
