"""Prompts are formatted once and shared between episodes."""

from __future__ import annotations

from functools import partial

import pytest

from tau2_lightning.environment import agents
from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.users import QueuedUser


def test_prompts_are_shared_and_the_least_recently_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "_prompts", {})
    users = [QueuedUser(tools=None, instructions="Call.", llm="x", llm_args={}) for _ in "12"]
    assert users[0].system_prompt is users[1].system_prompt
    assert users[0].system_prompt == api.UserSimulator(instructions="Call.", llm="x").system_prompt
    made: list[int] = []

    def make(index: int, prompt: str) -> str:
        made.append(index)
        return prompt

    for index in range(agents.PROMPTS_KEPT + 5):
        agents.shared_prompt(("task", index), partial(make, index, f"prompt {index}"))
        agents.shared_prompt(("agent",), partial(make, -1, "the agent's"))
    assert made.count(-1) == 1 and len(agents._prompts) == agents.PROMPTS_KEPT
    agents.shared_prompt(("task", 0), partial(make, 0, "prompt 0"))
    assert made.count(0) == 2
