"""Who decides what the user says: a script, or a model."""

from __future__ import annotations

import json
import re
from typing import Any

from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.settings import UserSettings
from tau2_lightning.environment.users import QueuedUser, UserBrain

STOP, TRANSFER = "###STOP###", "###TRANSFER###"


_CALL = re.compile(r"\b([A-Za-z_]\w*)\((\{.*?\})\)", re.DOTALL)


class ScriptedBrain:
    """A user without a model, for tests, demonstrations and offline runs.

    It opens with its reason for calling. When the agent names one of the user's own tools as ``tool_name({json})``
    it runs them and reports the results as text. It hangs up on a goodbye, accepts a transfer, and otherwise asks the
    agent to go on. It volunteers nothing, so it is no measure of an agent that must ask questions.
    """

    name = "scripted"

    def __init__(self, task: Any, tool_names: frozenset[str]) -> None:
        instructions = task.user_scenario.instructions
        self._opening = instructions if isinstance(instructions, str) else instructions.reason_for_call
        self._tool_names = tool_names
        self._calls = 0

    async def answer(self, user: QueuedUser, message: Any, state: Any) -> Any:
        return self.react(user.history(message, state))

    def react(self, history: list[Any]) -> Any:
        """The user's message after ``history``."""
        last = history[-1]
        if isinstance(last, api.ToolMessage):
            results = []
            for item in reversed(history):
                if not isinstance(item, api.ToolMessage):
                    break
                results.append(item.content or "")
            return _say("I did that. " + " | ".join(reversed(results)))
        if not any(isinstance(item, api.UserMessage) for item in history):
            return _say(self._opening)
        text = last.content or ""
        calls = self._requested(text)
        if calls:
            return api.UserMessage(role="user", content=None, tool_calls=calls, cost=0.0)
        if "goodbye" in text.lower():
            return _say(STOP)
        if "transfer" in text.lower():
            return _say(TRANSFER)
        return _say("Okay, please go on.")

    def _requested(self, text: str) -> list[Any]:
        calls = []
        for name, arguments in _CALL.findall(text):
            if name not in self._tool_names:
                continue
            try:
                parsed = json.loads(arguments)
            except json.JSONDecodeError:
                # The agent wrote no JSON: a person would not know what to enter either.
                continue
            self._calls += 1
            calls.append(api.ToolCall(id=f"user_{self._calls}", name=name, arguments=parsed, requestor="user"))
        return calls


def _say(text: str) -> Any:
    return api.UserMessage(role="user", content=text, cost=0.0)


def make_brain(settings: UserSettings, task: Any, tools: tuple[Any, ...] | None, seed: int) -> UserBrain:
    """The brain that ``settings`` ask for."""
    if settings.kind == "llm":
        from .user_model import ModelBrain

        return ModelBrain(settings, seed)
    return ScriptedBrain(task, frozenset(tool.name for tool in tools or ()))
