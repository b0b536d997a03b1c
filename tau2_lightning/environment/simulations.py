"""Recorded simulations as the agent of a training rollout would have seen them: system prompt, messages and tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import tau2_api as api
from .conversions import tool_result
from .dialogue import Dialogue
from .knowledge import PER_TASK
from .replies import MALFORMED, clean
from .scoring import plan_of
from .settings import EnvironmentSettings, TaskRef, UserSettings
from .tasks import find_task, get_task

_STOP = api.LLMSoloAgent.STOP_TOKEN


class UnusableSimulation(ValueError):
    """A simulation that no policy should imitate, or that cannot be read; the text is the reason, for counting."""


@dataclass(frozen=True)
class AgentsView:
    """One simulation from the side of the agent.

    ``messages`` are OpenAI messages that end with the agent's last turn; the first ``given`` of them come before its
    first turn: the system prompt, a history that the task brings, tau2's greeting. ``tools`` are the schemas offered
    (one object for all simulations of a domain).
    """

    messages: list[dict[str, Any]] = field(repr=False)
    tools: list[dict[str, Any]] = field(repr=False)
    given: int


class AgentsViews:
    """Reconstructs simulations of one domain under ``settings``, which decide on the prompt and the tools.

    The simulations may be those of this project or of tau2 itself, in the form of a results file. What the user says to
    its own tools is left out, as in an episode. Thoughts are those that the file has kept (``raw_data``).
    """

    def __init__(self, settings: EnvironmentSettings) -> None:
        nobody = UserSettings(kind="none" if settings.solo_mode else "scripted")
        self._settings = replace(settings, user=nobody, unjudged=True)  # nothing is played and nothing scored
        self._openings: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], int]] = {}

    def of(self, simulation: Mapping[str, Any]) -> AgentsView:
        """The view of one simulation. Raises UnusableSimulation, and ConfigError for a task that the domain lacks."""
        opening, tools, history = self._opening(find_task(self._settings.domain, str(simulation["task_id"])))
        seen = [message for message in _flat(simulation["messages"]) if _is_visible(message)]
        turns = [at for at, message in enumerate(seen) if message["role"] == "assistant"]
        if not history and not self._settings.solo_mode and turns[:1] == [0]:
            history = 1  # tau2's greeting
        if not turns or turns[-1] < history:
            raise UnusableSimulation("no turn of the agent")
        messages = [
            _as_openai(message, at, self._settings.solo_mode) for at, message in enumerate(seen[: turns[-1] + 1])
        ]
        return AgentsView([*opening, *messages], tools, len(opening) + history)

    def _opening(self, task: TaskRef) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
        """The messages before anybody's turn, the tools, and the number of messages that the task itself brings."""
        if task.task_id not in self._openings:
            dialogue = Dialogue(task, self._settings)
            state = get_task(task).initial_state
            brought = [m.model_dump() for m in (state.message_history or ())] if state is not None else []
            history = sum(_is_visible(message) for message in _flat(brought))
            self._openings[task.task_id] = dialogue.opening(), dialogue.tools, history
        return self._openings[task.task_id]


def was_solo(info: Mapping[str, Any]) -> bool:
    """Whether the ``info`` of a results file is that of solo runs."""
    agent, user = info.get("agent_info") or {}, info.get("user_info") or {}
    return agent.get("implementation") == api.SOLO_AGENT or user.get("implementation") == api.SOLO_USER


def has_other_rules(info: Mapping[str, Any], settings: EnvironmentSettings) -> bool:
    """Whether the policy text in the ``info`` of a results file is not that of the installed tau2."""
    told = (info.get("environment_info") or {}).get("policy")
    if told is None or settings.retrieval.config == PER_TASK:
        return False
    return bool(told != plan_of(settings).info().policy)


def thoughts_of(message: Mapping[str, Any]) -> str | None:
    """The reasoning that a recorded message of the agent keeps in ``raw_data``; None without one."""
    raw: Mapping[str, Any] = message.get("raw_data") or {}
    text = (raw.get("message") or raw).get("reasoning_content")
    return clean(text) if isinstance(text, str) and text.strip() else None


def _flat(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Messages one by one, with the results that tau2 keeps together taken apart."""
    for message in messages:
        yield from message.get("tool_messages") or (message,)


def _is_visible(message: Mapping[str, Any]) -> bool:
    """tau2's `is_valid_agent_history_message`."""
    role = message.get("role")
    if role == "user":
        return message.get("tool_calls") is None
    return role == "assistant" or (role == "tool" and message.get("requestor", "assistant") == "assistant")


def _as_openai(message: Mapping[str, Any], at: int, solo_mode: bool) -> dict[str, Any]:
    content = message.get("content")
    if message["role"] == "tool":
        return tool_result(str(message["id"]), content)
    if message["role"] == "user":
        return {"role": "user", "content": content}
    calls = message.get("tool_calls") or []
    if solo_mode and not calls and _STOP in (content or ""):
        # tau2 puts this text in the place of the call that ends a solo episode.
        content, calls = None, [{"id": f"call_{at}", "name": api.LLMSoloAgent.STOP_FUNCTION_NAME, "arguments": {}}]
    if any(MALFORMED in call["arguments"] for call in calls):
        raise UnusableSimulation("a malformed tool call")
    if not calls and not (content or "").strip():
        raise UnusableSimulation("an empty turn")
    turn: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        turn["tool_calls"] = [_call(call) for call in calls]
    if (thoughts := thoughts_of(message)) is not None:
        turn["reasoning_content"] = thoughts
    return turn


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
    return {"id": call["id"], "type": "function", "function": function}
