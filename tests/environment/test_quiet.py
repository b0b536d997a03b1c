"""A function without its debug lines is the same function otherwise."""

from __future__ import annotations

import ast
import inspect
import textwrap
import traceback
from typing import Any

import pytest
from loguru import logger

from tau2_lightning.environment import Dialogue, EnvironmentSettings, UserSettings, agents, load_tasks
from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.quiet import without_debug_lines
from tau2_lightning.environment.users import QueuedUser

SPOKEN: list[str] = []


class Loud:
    """Spells itself out where anybody can notice."""

    def __str__(self) -> str:
        SPOKEN.append("spoken")
        return "loud"


def noisy(first: Any, second: int = 2, *, third: int = 3) -> int:
    """Adds up."""
    logger.debug(f"first is {first}")
    if second > 1:
        logger.debug(f"still {first}")
    total = second + third
    if total < 0:
        raise ValueError("negative")
    return total


def test_only_the_debug_lines_go() -> None:
    quiet = without_debug_lines(noisy)
    assert quiet is not noisy and quiet.__doc__ == "Adds up." and quiet.__name__ == "noisy"
    for arguments, options in (((), {}), ((5,), {}), ((5,), {"third": 7})):
        assert quiet(Loud(), *arguments, **options) == noisy("x", *arguments, **options)
    assert not SPOKEN
    noisy(Loud())
    assert len(SPOKEN) == 2
    with pytest.raises(ValueError, match="negative") as raised:
        quiet(None, -9)
    with pytest.raises(ValueError, match="negative") as stock:
        noisy(None, -9)
    assert traceback.extract_tb(raised.tb)[-1].lineno == traceback.extract_tb(stock.tb)[-1].lineno
    with pytest.raises(TypeError):
        quiet()


def test_what_cannot_be_done_right_is_left_alone() -> None:
    outside = 1

    def closure() -> int:
        logger.debug("x")
        return outside

    class Mangled:
        __secret = 3

        def read(self) -> int:
            logger.debug("x")
            return self.__secret

    made: dict[str, Any] = {}
    exec("def nowhere():\n    logger.debug('x')\n    return 1", {"logger": logger}, made)
    for function in (closure, Mangled.read, made["nowhere"], len, property(closure)):
        assert without_debug_lines(function) is function  # type: ignore[type-var]


async def test_an_episode_spells_no_message_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> str:
        raise AssertionError("spelled out for a log that is off")

    for kind in (api.AssistantMessage, api.UserMessage, api.ToolMessage, api.ToolCall):
        monkeypatch.setattr(kind, "__str__", refuse)
    dialogue = Dialogue(load_tasks("mock", "base")[0], EnvironmentSettings("mock", user=UserSettings("scripted")))
    await dialogue.start()
    function = {"name": "get_users", "arguments": "{}"}
    await dialogue.reply({"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]})
    await dialogue.reply({"role": "assistant", "content": "Goodbye!"})
    assert dialogue.done


def test_prompts_are_shared_and_the_least_recently_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "_prompts", {})
    users = [QueuedUser(tools=None, instructions="Call.", llm="x", llm_args={}) for _ in "12"]
    assert users[0].system_prompt is users[1].system_prompt
    assert users[0].system_prompt == api.UserSimulator(instructions="Call.", llm="x").system_prompt
    made: list[int] = []
    for index in range(agents.PROMPTS_KEPT + 5):
        agents.shared_prompt(("task", index), lambda index=index: made.append(index) or f"prompt {index}")  # type: ignore[misc]
        agents.shared_prompt(("agent",), lambda: made.append(-1) or "the agent's")
    assert made.count(-1) == 1 and len(agents._prompts) == agents.PROMPTS_KEPT
    agents.shared_prompt(("task", 0), lambda: made.append(0) or "prompt 0")
    assert made.count(0) == 2


def test_tau2s_step_is_tau2s_but_for_its_debug_lines() -> None:
    stock, quiet = api.Orchestrator.step, without_debug_lines(api.Orchestrator.step)
    assert "debug" in stock.__code__.co_names and "debug" not in quiet.__code__.co_names
    kept = set(stock.__code__.co_names) - set(quiet.__code__.co_names)
    tree = ast.parse(textwrap.dedent(inspect.getsource(stock)))
    spoken = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "logger.debug"
    ]
    assert spoken and {"debug"} <= kept <= {"logger", "debug"}
