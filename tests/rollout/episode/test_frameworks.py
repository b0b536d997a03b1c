"""With unchanged agents of other frameworks, each dialogue is one token-exact row.

A test runs where its framework can be imported, or with AGENTS_PYTHON, the interpreter of an environment that has it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.rollout.episode.runner import EpisodeRequest, EpisodeRunner
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.trajectory import Rollout
from tests.rollout.proxy.rig import Rig

PYTHON = os.environ.get("AGENTS_PYTHON", "")
MODULES = {"langchain": "langchain_openai", "openai_agents": "agents", "smolagents": "smolagents"}
SCRIPT = Path(__file__).parent / "framework_agents.py"


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


class Framework:
    """A workflow that runs one of the agents in a separate process."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def run(self, data: Any, *, base_url: str, api_key: str, **_: Any) -> float:
        command = [PYTHON or sys.executable, str(SCRIPT), self.name, base_url, api_key]
        child = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
        said, problem = await child.communicate()
        assert child.returncode == 0, problem.decode()[-3000:]
        return float("a wall" in said.decode())


async def play(name: str, script: list[str]) -> Rollout:
    if not PYTHON and importlib.util.find_spec(MODULES[name]) is None:
        pytest.skip(f"{MODULES[name]} is not installed, and AGENTS_PYTHON names no interpreter")
    async with (
        Rig(ProxySettings()) as rig,
        episode_access(rig.service, rig.server.base_url, over_http=True, timeout=60) as access,
    ):
        rig.engine.script.extend(script)
        runner = EpisodeRunner(Framework(name), rig.store, access, timeout=120, retries=0)
        return await runner.run(EpisodeRequest(None, "t", "g", sample=0, seed=0))


@pytest.mark.parametrize("name", ["langchain", "openai_agents"])
async def test_a_dialogue_with_tools_is_one_row(name: str) -> None:
    # Frameworks serialise these spaces and letters in another way than the model wrote them.
    looks = ["I look.\n" + call("look", at="the  é door"), call("look", at="x")]
    rollout = await play(name, [*looks, "I see a wall."])
    assert rollout.reward == 1.0
    assert [len(row.turns) for row in rollout.trajectories] == [3]
    assert all(turn.altered is None for row in rollout.trajectories for turn in row.turns)


async def test_smolagents_writes_calls_as_text_so_each_turn_is_a_row_of_its_own() -> None:
    """smolagents turns earlier calls into text, so the history differs from what was sampled and each turn branches."""
    rollout = await play(
        "smolagents", [call("look", at="x"), call("look", at="y"), call("final_answer", answer="a wall")]
    )
    assert rollout.reward == 1.0
    assert [len(row.turns) for row in rollout.trajectories] == [1, 1, 1]
