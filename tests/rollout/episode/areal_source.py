"""AReaL's own tau2 agent, imported from a checkout of its public repository.

This module replaces two missing parts. (1) ``areal`` itself imports every training backend, so the two names that the
agent imports from it, a logger and an empty configuration class, are made here. (2) The agent needs a fork of tau2
with two additions: agents and users take a ``completion_fn``, and the orchestrator has ``arun``. `fork_of_tau2` adds
these to the installed tau2. The files of the agent are executed unchanged.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextvars import ContextVar
from dataclasses import make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_ASK: ContextVar[Any] = ContextVar("ask")
_LOOP: ContextVar[asyncio.AbstractEventLoop] = ContextVar("loop")


def agent_class(source: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``Tau2AgentWorkflow`` of the checkout at ``source``."""
    _without_backends(monkeypatch)
    fork_of_tau2(monkeypatch)
    monkeypatch.syspath_prepend(str(source))
    for name in ("examples", "examples.tau2", "examples.tau2.utils", "examples.tau2.agent"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from examples.tau2.agent import Tau2AgentWorkflow

    return Tau2AgentWorkflow


def _without_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("areal", "areal.utils", "areal.utils.logging", "areal.api", "areal.api.cli_args")
    made: dict[str, Any] = {name: ModuleType(name) for name in names}
    made["areal.utils.logging"].getLogger = logging.getLogger
    made["areal.utils"].logging = made["areal.utils.logging"]
    made["areal.api.cli_args"].PPOConfig = make_dataclass("PPOConfig", [])
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)


def fork_of_tau2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add ``completion_fn`` and ``arun``, which only the fork of tau2 has."""
    from tau2.agent import llm_agent
    from tau2.orchestrator import orchestrator
    from tau2.user import user_simulator
    from tau2.utils import llm_utils

    def with_function(kind: type[Any]) -> type[Any]:
        class Asking(kind):
            def __init__(self, *arguments: Any, completion_fn: Any = None, **more: Any) -> None:
                super().__init__(*arguments, **more)
                self.completion_fn = completion_fn

            def generate_next_message(self, *arguments: Any) -> Any:
                token = _ASK.set(self.completion_fn)
                try:
                    return super().generate_next_message(*arguments)
                finally:
                    _ASK.reset(token)

        return Asking

    def completion(**request: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(_ASK.get()(**request), _LOOP.get()).result(60)

    solo = with_function(llm_agent.LLMSoloAgent)

    class Orchestrator(orchestrator.Orchestrator):
        def __init__(self, **more: Any) -> None:
            super().__init__(**more, solo_mode=isinstance(more["agent"], solo))

        async def arun(self) -> Any:
            _LOOP.set(asyncio.get_running_loop())
            return await asyncio.to_thread(self.run)

    monkeypatch.setattr(llm_agent, "LLMAgent", with_function(llm_agent.LLMAgent))
    monkeypatch.setattr(llm_agent, "LLMSoloAgent", solo)
    monkeypatch.setattr(user_simulator, "UserSimulator", with_function(user_simulator.UserSimulator))
    monkeypatch.setattr(orchestrator, "Orchestrator", Orchestrator)
    monkeypatch.setattr(llm_utils, "completion", completion)
    # The agent's module replaces this function; setting it here lets monkeypatch restore it after the test.
    monkeypatch.setattr(llm_utils, "get_response_cost", llm_utils.get_response_cost)
