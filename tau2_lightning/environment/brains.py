"""The user's messages: by a script or a model."""

from __future__ import annotations

import json
import re
from typing import Any

from . import tau2_api as api
from .script import Script
from .settings import UserSettings
from .users import QueuedUser, UserBrain

STOP, TRANSFER = "###STOP###", "###TRANSFER###"
_CALL = re.compile(r"\b([A-Za-z_]\w*)\((\{.*?\})\)", re.DOTALL)
_TOKEN = re.compile(r"###[A-Z-]+###")


class ScriptedBrain:
    """A user without a model, for tests, demonstrations and offline runs.

    Its first message is its reason for calling. When the agent writes ``tool_name({json})`` with tools of the user, it
    runs them and reports the results as text. It ends the dialogue at a goodbye, accepts a transfer, and otherwise asks
    the agent to continue. It volunteers no information: asked who it is, why, how it pays or what else it wants, it
    reads the answer out of its instructions, and it confirms whatever is proposed (`script.Script`).
    """

    name = "scripted"

    def __init__(self, task: Any, tool_names: frozenset[str]) -> None:
        instructions = task.user_scenario.instructions
        opening = instructions if isinstance(instructions, str) else instructions.reason_for_call
        # Some tasks of banking_knowledge tell the user when to say its tokens; to read that out would end the dialogue.
        self._opening = _TOKEN.sub("", opening)
        self._script = Script(instructions)
        self._tool_names = tool_names
        self._calls = 0

    async def answer(self, user: QueuedUser, message: Any, state: Any) -> Any:
        """See `UserBrain.answer`."""
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
        said = [item.content or "" for item in history if isinstance(item, api.UserMessage)]
        return _say(self._script.answer(text, said) or "Okay, please go on.")

    def _requested(self, text: str) -> list[Any]:
        calls = []
        for name, arguments in _CALL.findall(text):
            if name not in self._tool_names:
                continue
            try:
                parsed = json.loads(arguments)
            except json.JSONDecodeError:
                # Without valid JSON a person would not know what to enter either.
                continue
            self._calls += 1
            calls.append(api.ToolCall(id=f"user_{self._calls}", name=name, arguments=parsed, requestor="user"))
        return calls


def _say(text: str) -> Any:
    return api.UserMessage(role="user", content=text, cost=0.0)


def make_brain(settings: UserSettings, task: Any, tools: tuple[Any, ...] | None, seed: int) -> UserBrain:
    """The user's brain of the kind that ``settings`` name."""
    if settings.kind == "llm":
        from .user_model import ModelBrain

        return ModelBrain(settings, seed)
    return ScriptedBrain(task, frozenset(tool.name for tool in tools or ()))
