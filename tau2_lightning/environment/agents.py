"""tau2 agents whose next message comes from outside, not from a model that they call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import tau2_api as api

PROMPTS_KEPT = 64
_prompts: dict[tuple[Any, ...], str] = {}


def shared_prompt(key: tuple[Any, ...], build: Callable[[], str]) -> str:
    """One string for all episodes with the same prompt: telecom's has 93 kB, and tau2 formats it twice per episode.

    The least recently used one is dropped first: users' prompts, one per task, must not displace the agents' few.
    """
    prompt = _prompts.pop(key, None) or build()
    _prompts[key] = prompt
    if len(_prompts) > PROMPTS_KEPT:
        del _prompts[next(iter(_prompts))]
    return prompt


class _Queued:
    """Common part of both agents: hands over the queued message and keeps tau2's own history."""

    queued: Any = None
    tools: list[Any]
    domain_policy: str
    task: Any = None  # only the solo agent's prompt contains the task

    @property
    def system_prompt(self) -> str:
        """tau2's own prompt, formatted once."""
        stock: Any = super()
        ticket = None if self.task is None else self.task.ticket
        return shared_prompt((type(self), self.domain_policy, ticket), lambda: stock.system_prompt)

    def set_seed(self, seed: int) -> None:
        """Does nothing: sampling happens outside. tau2 records the seed in the simulation."""

    def generate_next_message(self, message: Any, state: Any) -> tuple[Any, Any]:
        if isinstance(message, api.MultiToolMessage):
            state.messages.extend(message.tool_messages)
        elif message is not None:
            state.messages.append(message)
        reply, self.queued = self.queued, None
        if reply is None:
            raise RuntimeError("tau2 asked the agent for a message that nobody queued")
        state.messages.append(reply)
        return reply, state


class QueuedSoloAgent(_Queued, api.LLMSoloAgent):
    """tau2's solo agent with a queued message; ``done`` ends the episode as in tau2's ``generate_next_message``."""

    def __init__(self, tools: list[Any], stop_tool: Any, domain_policy: str, task: Any) -> None:
        self._stop_tool = stop_tool
        super().__init__(tools=tools, domain_policy=domain_policy, task=task, llm="external", llm_args={})

    def add_stop_tool(self) -> None:
        self.tools.append(self._stop_tool)

    def generate_next_message(self, message: Any, state: Any) -> tuple[Any, Any]:
        self.queued = self._check_if_stop_toolcall(self.queued)
        return super().generate_next_message(message, state)


class QueuedAgent(_Queued, api.LLMAgent):
    """tau2's dialogue agent with a queued message."""

    def __init__(self, tools: list[Any], domain_policy: str) -> None:
        super().__init__(tools=tools, domain_policy=domain_policy, llm="external", llm_args={})
