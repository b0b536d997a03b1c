"""Plays episodes with stock tau2: its own environments, orchestrator and evaluator, a scripted agent and user.

The benchmark compares with it, and the equality tests use it as their oracle. Nothing here uses our environments or
scores.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from unittest import mock

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

from loguru import logger

logger.disable("tau2")

from tau2.agent.llm_agent import LLMAgent, LLMSoloAgent  # noqa: E402
from tau2.data_model.message import AssistantMessage, MultiToolMessage, ToolCall  # noqa: E402
from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation  # noqa: E402
from tau2.orchestrator.orchestrator import Orchestrator  # noqa: E402
from tau2.registry import registry  # noqa: E402
from tau2.user.user_simulator import DummyUser, UserSimulator  # noqa: E402

UPSTREAM = find_spec("tau2.runner") is not None  # DummyUser takes no arguments, tasks choose the user's tools


@dataclass(frozen=True)
class Move:
    """One agent message: text, or tool calls as (name, arguments)."""

    text: str | None = None
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()

    def tau2(self) -> Any:
        calls = [ToolCall(id=f"c{i}", name=name, arguments=args) for i, (name, args) in enumerate(self.calls)]
        return AssistantMessage(role="assistant", content=self.text, tool_calls=calls or None, cost=0.0)

    def openai(self) -> dict[str, Any]:
        import json

        calls = [
            {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(args)}}
            for i, (name, args) in enumerate(self.calls)
        ]
        return {"role": "assistant", "content": self.text} | ({"tool_calls": calls} if calls else {})


class OutOfMovesError(Exception):
    """Raised when the script ends before the episode."""


class _Scripted:
    """An agent that plays a list of moves at once."""

    moves: Any

    def set_seed(self, seed: int) -> None:
        """Nothing is sampled."""

    def generate_next_message(self, message: Any, state: Any) -> tuple[Any, Any]:
        if isinstance(message, MultiToolMessage):
            state.messages.extend(message.tool_messages)
        elif message is not None:
            state.messages.append(message)
        try:
            reply = next(self.moves).tau2()
        except StopIteration:
            raise OutOfMovesError from None
        if isinstance(self, LLMSoloAgent) and reply.tool_calls:
            reply = self._check_if_stop_toolcall(reply)
        state.messages.append(reply)
        return reply, state


class _SoloAgent(_Scripted, LLMSoloAgent):
    pass


class _DialogueAgent(_Scripted, LLMAgent):
    pass


class _User(UserSimulator):
    """The rules of the scripted user, inside tau2's blocking call."""

    react: Any

    def set_seed(self, seed: int) -> None:
        """Nothing is sampled."""

    def generate_next_message(self, message: Any, state: Any) -> tuple[Any, Any]:
        state.messages.extend(message.tool_messages if isinstance(message, MultiToolMessage) else [message])
        reply = self.react(state.messages)
        state.messages.append(reply)
        return reply, state


@dataclass(frozen=True)
class StockEpisode:
    """The result of stock tau2 for the moves. ``environment`` is in its final state, before scoring."""

    simulation: Any
    environment: Any
    solo_mode: bool
    domain: str
    task: Any
    arguments: Mapping[str, Any]

    def reward_info(self) -> Any:
        return evaluate_simulation(
            simulation=self.simulation,
            task=self.task,
            evaluation_type=EvaluationType.ALL,
            solo_mode=self.solo_mode,
            domain=self.domain,
            **({"env_kwargs": dict(self.arguments)} if self.arguments else {}),
        )


@contextmanager
def parsed_once() -> Iterator[None]:
    """While open, tau2 reads each database file once instead of three times an episode.

    It keeps the parsed JSON. tau2 still validates it and makes new objects for every database. Raises AssertionError at
    the end when an episode has changed the kept JSON. This is for tests of thousands of episodes; the benchmark
    measures tau2 without it.
    """
    from tau2.environment import db

    stock: Any = db.load_file
    kept: dict[str, Any] = {}

    def load_file(path: Any, **kwargs: Any) -> Any:
        if str(path) not in kept:
            kept[str(path)] = stock(path, **kwargs)
        return kept[str(path)]

    with mock.patch.object(db, "load_file", load_file), _indexed_once():
        yield
    for path, data in kept.items():
        assert data == stock(path), f"an episode has changed what was read from {path}"


@contextmanager
def _indexed_once() -> Iterator[None]:
    """While open, upstream indexes its knowledge base once for each search, instead of four times an episode."""
    if not UPSTREAM:
        yield
        return
    from tau2.domains.banking_knowledge import retrieval

    kept: dict[Any, Any] = {}

    def once(name: str) -> Any:
        stock = getattr(retrieval, name)

        def create(knowledge_base: Any, **options: Any) -> Any:
            key = (name, str(sorted(options.items(), key=str)))
            if key not in kept:
                kept[key] = stock(knowledge_base=knowledge_base, **options)
            return kept[key]

        return mock.patch.object(retrieval, name, create)

    with once("create_bm25_retrieval_pipeline"), once("create_grep_retrieval_pipeline"):
        yield


def play_stock(
    domain: str,
    task: Any,
    moves: Sequence[Move],
    *,
    solo_mode: bool,
    max_steps: int = 200,
    max_errors: int = 10,
    arguments: Mapping[str, Any] | None = None,
) -> StockEpisode:
    """Play the moves as ``tau2.run.run_task`` would; the environment gets ``arguments``. Raises what tau2 raises."""
    constructor = registry.get_env_constructor(domain)
    arguments = dict(arguments or {})
    environment = constructor(**arguments, **({"solo_mode": True} if solo_mode else {}))
    user_tools = environment.get_user_tools() if environment.user_tools is not None else None
    if solo_mode:
        tools = environment.get_tools() + (user_tools or [])
        agent = _SoloAgent(tools=tools, domain_policy=environment.get_policy(), task=task, llm="x", llm_args={})
        scenario = {"tools": user_tools, "instructions": str(task.user_scenario), "llm": None}
        user = DummyUser(**({} if UPSTREAM else scenario))  # upstream's takes no arguments
    else:
        if UPSTREAM and user_tools is not None:  # as in tau2.runner.build.build_user
            user_tools = environment.get_user_tools(include=task.user_tools) or None
        agent = _DialogueAgent(
            tools=environment.get_tools(), domain_policy=environment.get_policy(), llm="x", llm_args={}
        )
        user = _User(tools=user_tools, instructions=str(task.user_scenario), llm="x", llm_args={})
        user.react = _reactions(task, user_tools)
    agent.moves = iter(moves)
    orchestrator = Orchestrator(
        domain=domain,
        agent=agent,
        user=user,
        environment=environment,
        task=task,
        max_steps=max_steps,
        max_errors=max_errors,
        seed=1,
        solo_mode=solo_mode,
    )
    return StockEpisode(orchestrator.run(), environment, solo_mode, domain, task, arguments)


def _reactions(task: Any, user_tools: Any) -> Any:
    from tau2_lightning.environment.brains import ScriptedBrain

    return ScriptedBrain(task, frozenset(tool.name for tool in user_tools or ())).react
