"""Whether a version of tau2 that the tests do not run with keeps what this package relies on: checks with names.

A known version passes at once. Any other either passes all checks, or a run is refused with the name of the first that
fails; it never works by halves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from tau2_lightning.errors import Violation

from . import tau2_api as api
from .demonstrations import _at_once, _follow, _gold_messages
from .dialogue import Dialogue
from .scoring import official_reward_info, tau2_can_score
from .settings import EnvironmentSettings, JudgeSettings, TaskRef, UserSettings
from .tasks import get_task, load_tasks, scored_task
from .tau2_install import INSTALL_NVIDIA, INSTALL_UPSTREAM, KNOWN

log = structlog.get_logger(__name__)

# Gold solutions that are played: some tasks' need more than the scripted user can do.
GOLD_TASKS = 3
_CALLED: tuple[tuple[str, Callable[[], Any], tuple[str, ...]], ...] = (
    (
        "Orchestrator",
        lambda: api.Orchestrator.__init__,
        ("domain", "agent", "user", "environment", "task", "max_steps", "max_errors", "seed", "solo_mode"),
    ),
    ("LLMAgent", lambda: api.LLMAgent.__init__, ("tools", "domain_policy", "llm", "llm_args")),
    ("LLMSoloAgent", lambda: api.LLMSoloAgent.__init__, ("tools", "domain_policy", "task", "llm", "llm_args")),
    ("UserSimulator", lambda: api.UserSimulator.__init__, ("tools", "instructions", "llm", "llm_args")),
    (
        "EnvironmentEvaluator.calculate_reward",
        lambda: api.EnvironmentEvaluator.calculate_reward,
        ("environment_constructor", "task", "full_trajectory", "solo_mode"),
    ),
    (
        "CommunicateEvaluator.calculate_reward",
        lambda: api.CommunicateEvaluator.calculate_reward,
        ("task", "full_trajectory"),
    ),
    (
        "Environment.set_state",
        lambda: api.Environment.set_state,
        ("initialization_data", "initialization_actions", "message_history"),
    ),
    ("Environment.make_tool_call", lambda: api.Environment.make_tool_call, ("tool_name", "requestor")),
    ("Environment.get_response", lambda: api.Environment.get_response, ("message",)),
    ("ToolKitBase.use_tool", lambda: api.ToolKitBase.use_tool, ("tool_name",)),
)
_HELD = (
    ("Task", ("id", "user_scenario", "ticket", "initial_state", "evaluation_criteria")),
    ("RewardInfo", ("reward", "db_check", "env_assertions", "action_checks", "nl_assertions", "communicate_checks")),
    ("RewardInfo", ("reward_basis", "reward_breakdown", "info")),
    ("NLAssertionCheck", ("nl_assertion", "met", "justification")),
    ("SimulationRun", ("id", "task_id", "termination_reason", "reward_info", "messages", "trial", "seed")),
    ("Results", ("info", "tasks", "simulations")),
    ("ToolCall", ("id", "name", "arguments", "requestor")),
    ("ToolMessage", ("id", "content", "requestor", "error")),
)
_REASONS = {"user_stop", "agent_stop", "max_steps", "too_many_errors", "agent_error"}
_BASES = {"DB", "ENV_ASSERTION", "NL_ASSERTION", "ACTION", "COMMUNICATE"}


def check_tau2(settings: EnvironmentSettings | None = None) -> list[Violation]:
    """Nothing for a version of tau2 that the tests run with, or that passes every check; else the check that fails.

    The checks cover signatures, fields and words and, with ``settings``, by playing gold solutions of their domain,
    that the fast score is tau2's.
    """
    if api.INSTALLED.known:
        return []
    for name, check in _checks(settings):
        try:
            check()
        except Exception as error:  # noqa: BLE001 - whatever a changed tau2 raises
            known = " and ".join(f"{distribution} {version}" for distribution, version in KNOWN.items())
            problem = f"check `{name}` of what this project relies on fails: {type(error).__name__}: {error}"
            remedy = f"{known} work: {INSTALL_NVIDIA}; or {INSTALL_UPSTREAM}"
            return [Violation("tau2", str(api.INSTALLED), problem, remedy)]
    if settings is not None:
        log.warning("a version of tau2 that the tests do not run with passes all checks", tau2=str(api.INSTALLED))
    return []


def _checks(settings: EnvironmentSettings | None) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "signatures", _signatures
    yield "fields", _fields
    yield "termination reasons", _termination_reasons
    yield "reward basis", _reward_basis
    yield "question to the judge", _question_to_the_judge
    yield "unscored episodes", _unscored_episodes
    if settings is not None:
        yield f"gold solutions of {settings.domain}", partial(_gold_solutions, settings)


def _signatures() -> None:
    for name, find, wanted in _CALLED:
        taken = inspect.signature(find()).parameters
        missing = [one for one in wanted if one not in taken]
        if missing and not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
            raise TypeError(f"{name} takes no {', '.join(missing)}")


def _fields() -> None:
    for name, wanted in _HELD:
        missing = set(wanted) - set(getattr(api, name).model_fields)
        if missing:
            raise AttributeError(f"{name} has no {', '.join(sorted(missing))}")


def _termination_reasons() -> None:
    missing = _REASONS - {reason.value for reason in api.TerminationReason}
    if missing:
        raise ValueError(f"no reason named {', '.join(sorted(missing))}")


def _reward_basis() -> None:
    found = {kind.value for kind in api.RewardType}
    if found != _BASES:
        raise ValueError(f"it may hold {', '.join(sorted(found))}; {', '.join(sorted(_BASES))} can be scored")


def _question_to_the_judge() -> None:
    request = str(api.judge_request([api.UserMessage(role="user", content="PROBE-SAID")], ["PROBE-WANTED"]))
    if "PROBE-SAID" not in request or "PROBE-WANTED" not in request:
        raise ValueError("it does not hold the episode and the assertions")


def _unscored_episodes() -> None:
    """Every reason but the two at which agent or user end the episode themselves earns 0, whatever was done."""
    task = get_task(load_tasks("mock", "base")[0])
    for reason in api.TerminationReason:
        if reason.value in ("agent_stop", "user_stop"):
            continue
        run = api.SimulationRun(
            id="0", task_id=task.id, start_time="0", end_time="0", duration=0.0, termination_reason=reason, messages=[]
        )
        if (reward := api.full_evaluation(run, task, "mock", False, {}).reward) != 0.0:
            raise ValueError(f"an episode that ended by {reason.value} earns {reward:g}")


def _gold_solutions(settings: EnvironmentSettings) -> None:
    user = settings.user if settings.user.kind != "llm" else UserSettings("scripted")
    chosen = replace(settings, user=user, unjudged=True, judge=JudgeSettings(), user_faults="keep")
    tasks = load_tasks(chosen.domain, "base", solo_mode=chosen.solo_mode)[:GOLD_TASKS]
    rewards = [_compared(task, chosen, all_of_it) for task in tasks for all_of_it in (True, False)]
    if not any(reward == 1.0 for reward in rewards):
        raise ValueError(f"none of the first {len(tasks)} tasks' gold solutions earns the reward")


def _compared(task: TaskRef, settings: EnvironmentSettings, whole: bool) -> float:
    """The reward of the gold solution, or of ending at once; raises ValueError unless tau2's evaluator agrees."""
    said = [message for _, message in _gold_messages(get_task(task), settings.solo_mode)]
    dialogue = Dialogue(task, settings, seed=1)
    _at_once(_follow(dialogue, iter(said if whole else said[-1:])))
    run = api.SimulationRun.model_validate(dict(dialogue.outcome().simulation))
    try:
        official = official_reward_info(run, scored_task(task, settings), settings)
    except Exception:
        if tau2_can_score(dialogue.outcome().simulation, task, settings):
            raise
        return 0.0  # an assertion that raises, as mock's about a task that the agent has not created
    if run.reward_info != official:
        raise ValueError(f"on {task.task_id} the fast score is {run.reward_info}, tau2's {official}")
    return float(official.reward)
