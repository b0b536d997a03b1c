"""Who answers the agent: tau2's user simulator with a model behind it, or a script that needs none.

Both are tau2 UserSimulators whose next message is prepared before the orchestrator asks for it, so a slow user model
holds up its own episode only and no thread waits. The user's own tool calls and their results stay in its history.
"""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.agents import shared_prompt
from tau2_lightning.environment.settings import UserSettings

STOP, TRANSFER = "###STOP###", "###TRANSFER###"
_GUIDELINES: dict[bool, str] = {}
_CALL = re.compile(r"\b([A-Za-z_]\w*)\((\{.*?\})\)", re.DOTALL)


class QueuedUser(api.UserSimulator):
    """tau2's user simulator; the next message is queued by ``prepare`` instead of generated inside the step."""

    queued: Any = None

    @property
    def global_simulation_guidelines(self) -> str:
        """tau2's own text; tau2 reads it from file for every episode."""
        with_tools = self.tools is not None
        if with_tools not in _GUIDELINES:
            _GUIDELINES[with_tools] = super().global_simulation_guidelines
        return _GUIDELINES[with_tools]

    @property
    def system_prompt(self) -> str:
        """tau2's own, formatted once."""
        stock: Any = super()
        key = (type(self), self.tools is not None, self.instructions)
        return shared_prompt(key, lambda: stock.system_prompt)

    def set_seed(self, seed: int) -> None:
        """Kept for the model's sampling arguments; a user without a model has no randomness."""
        self.seed = seed

    def history(self, message: Any, state: Any) -> list[Any]:
        """All the user has seen, ``message`` included, as tau2 messages."""
        incoming = message.tool_messages if isinstance(message, api.MultiToolMessage) else [message]
        return [*state.messages, *incoming]

    def generate_next_message(self, message: Any, state: Any) -> tuple[Any, Any]:
        reply, self.queued = self.queued, None
        if reply is None:
            raise RuntimeError("tau2 asked the user for a message that nobody prepared")
        state.messages.extend([*self.history(message, state)[len(state.messages) :], reply])
        return reply, state


class UserBrain(Protocol):
    """Decides what the user says next."""

    name: str

    async def answer(self, user: QueuedUser, message: Any, state: Any) -> Any:
        """tau2's UserMessage that answers ``message``. Raises InfrastructureFault("user", ...) when it cannot."""
        ...


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
        from tau2_lightning.environment.user_model import ModelBrain

        return ModelBrain(settings, seed)
    return ScriptedBrain(task, frozenset(tool.name for tool in tools or ()))
