"""The reward of a finished episode: tau2's own evaluators, on the environment that was played instead of a replay.

tau2 scores by building two more environments: it replays the whole trajectory into one and the gold actions into the
other. The played environment equals the replayed one, and the gold one is the same every time, so its database state
is cached (`end_states`). ``official_reward`` runs tau2's evaluator unchanged; every run checks a sample against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tau2_lightning.errors import InfrastructureFault

from . import tau2_api as api
from .blueprints import Blueprint, blueprint, stock_environment
from .end_states import Played
from .judge import verdict_of
from .knowledge import constructor_arguments
from .settings import EnvironmentSettings, TaskRef
from .tasks import scored_task


class ScoreMismatch(InfrastructureFault):
    """The fast score and tau2's own disagree. The run must stop: its rewards cannot be trusted."""

    def __init__(self, ours: float, official: float, simulation: Mapping[str, Any]) -> None:
        self.ours, self.official, self.simulation = ours, official, simulation
        detail = f"fast path {ours:g}, tau2 {official:g}, task {simulation.get('task_id')}"
        super().__init__("environment", "score_mismatch", detail)


def plan_of(settings: EnvironmentSettings) -> Blueprint:
    """The blueprint of the episodes that ``settings`` describe."""
    return blueprint(settings.domain, settings.solo_mode, settings.retrieval)


def fast_reward_info(
    simulation: Any, task: Any, environment: Any, settings: EnvironmentSettings, verdict: str | None
) -> Any:
    """tau2's RewardInfo of ``simulation``, whose final state is ``environment``. Call it once, after the episode:
    tau2's assertions may change the environment. ``verdict`` is the judge's text, where the task has one.
    """
    plan = plan_of(settings)
    with api.judged_as(verdict):
        return _assemble(simulation, task, Played(environment, task, plan), plan)


def official_reward_info(simulation: Any, task: Any, settings: EnvironmentSettings) -> Any:
    """tau2's RewardInfo, by tau2's evaluator: two stock environments and a full replay. The judge is not asked again:
    its verdict is in the reward info that ``simulation`` has.
    """
    arguments = constructor_arguments(settings.domain, settings.retrieval, task)
    with api.judged_as(verdict_of(simulation)):
        return api.full_evaluation(simulation, task, settings.domain, settings.solo_mode, arguments)


def official_reward(simulation: Mapping[str, Any], task: TaskRef, settings: EnvironmentSettings) -> float:
    """The reward tau2's own evaluator gives an ``EpisodeOutcome.simulation``.

    Raises InfrastructureFault("environment", "replay") when tau2 cannot replay the episode.
    """
    run = api.SimulationRun.model_validate(dict(simulation))
    try:
        info = official_reward_info(run, scored_task(task, settings), settings)
    except Exception as error:
        raise InfrastructureFault("environment", "replay", f"{task.task_id}: {error}") from error
    return float(info.reward)


def replayed_reward(
    simulation: Mapping[str, Any], task: TaskRef, settings: EnvironmentSettings, *, strict: bool = False
) -> float:
    """The reward by tau2's evaluators with a full replay into a copy of the blueprint's environment.

    The result of ``official_reward``, without building the databases anew. Raises InfrastructureFault as it does. An
    assertion that raises an error, on which tau2's evaluator gives up, is taken as failed unless ``strict``.
    """
    run, tau2_task = api.SimulationRun.model_validate(dict(simulation)), scored_task(task, settings)
    plan = plan_of(settings)
    replaying = Played(plan.environment(tau2_task), tau2_task, plan, replay=True, strict=strict)
    try:
        with api.judged_as(verdict_of(run)):
            return float(_assemble(run, tau2_task, replaying, plan).reward)
    except Exception as error:
        raise InfrastructureFault("environment", "replay", f"{task.task_id}: {error}") from error


def cross_check(simulation: Mapping[str, Any], task: TaskRef, settings: EnvironmentSettings) -> float | None:
    """Re-score one episode officially and check the shared databases; returns tau2's reward.

    None when tau2 cannot score the episode at all (see ``tau2_can_score``). Raises ScoreMismatch when tau2's reward
    differs from the fast path's, SharedStateChanged when an episode has changed the records that all share.
    """
    plan_of(settings).verify_pristine()
    try:
        official = official_reward(simulation, task, settings)
    except InfrastructureFault:
        if tau2_can_score(simulation, task, settings):
            raise
        return None
    ours = float((simulation.get("reward_info") or {}).get("reward", float("nan")))
    if not abs(ours - official) < 1e-9:
        raise ScoreMismatch(ours, official, simulation)
    return official


def tau2_can_score(simulation: Mapping[str, Any], task: TaskRef, settings: EnvironmentSettings) -> bool:
    """Whether tau2's evaluator is able to score the episode.

    It is not when a tool result is random (telecom generates ids for new bills), so that no two replays agree, or when
    an assertion raises an error instead of failing (mock's about a task that was never created, telecom's about access
    points that the agent has set to something that is not settings).
    """
    run, tau2_task = api.SimulationRun.model_validate(dict(simulation)), scored_task(task, settings)
    place = (settings.domain, settings.solo_mode, settings.retrieval, tau2_task)
    environments = [stock_environment(*place) for _ in range(2)]
    first, second = (_replay_results(environment, run, tau2_task) for environment in environments)
    if first != second:
        return False
    criteria = tau2_task.evaluation_criteria
    try:
        for assertion in (criteria.env_assertions if criteria is not None else None) or []:
            environments[0].run_env_assertion(assertion, raise_assertion_error=False)
    except Exception:  # noqa: BLE001 - domain code; tau2's evaluator would meet the same
        return False
    return True


def _replay_results(environment: Any, run: Any, task: Any) -> list[Any]:
    """The tools' answers when the episode's calls are made once more."""
    initial = task.initial_state
    environment.set_state(
        initialization_data=initial.initialization_data if initial is not None else None,
        initialization_actions=initial.initialization_actions if initial is not None else None,
        message_history=[],
    )
    calls = [call for message in run.messages or () for call in getattr(message, "tool_calls", None) or ()]
    return [environment.get_response(call).content for call in calls if api.is_replayed(environment, call.name)]


def _assemble(simulation: Any, task: Any, constructor: Any, plan: Blueprint) -> Any:
    """tau2's RewardInfo by its evaluators, with environments from ``constructor``."""
    reasons, criteria = api.TerminationReason, task.evaluation_criteria
    if simulation.termination_reason not in {reasons.AGENT_STOP, reasons.USER_STOP} or criteria is None:
        # tau2 looks at no environment in these cases.
        return api.full_evaluation(simulation, task, plan.domain, plan.solo_mode, {})
    env_info = api.EnvironmentEvaluator.calculate_reward(
        environment_constructor=constructor,
        task=task,
        full_trajectory=simulation.messages,
        solo_mode=plan.solo_mode,
    )
    action_info = api.action_reward_info(task, simulation.messages, plan.tool_types)
    said_info = api.CommunicateEvaluator.calculate_reward(task=task, full_trajectory=simulation.messages)
    judged_info = None
    if api.RewardType.NL_ASSERTION in criteria.reward_basis:
        judged_info = api.NLAssertionsEvaluator.calculate_reward(task=task, full_trajectory=simulation.messages)
    return _combine(criteria.reward_basis, env_info, action_info, said_info, judged_info)


def _combine(basis: Any, env_info: Any, action_info: Any, said_info: Any, judged_info: Any) -> Any:
    """The product over the task's reward basis, as in tau2's ``evaluate_simulation``."""
    kinds, wanted = api.RewardType, set(basis)
    reward = 1.0
    breakdown: dict[Any, float] = {}
    parts = (
        ({kinds.DB, kinds.ENV_ASSERTION}, env_info),
        ({kinds.ACTION}, action_info),
        ({kinds.NL_ASSERTION}, judged_info),
        ({kinds.COMMUNICATE}, said_info),
    )
    for bases, info in parts:
        if wanted & bases:
            breakdown.update(info.reward_breakdown or {})
            reward *= info.reward
    return api.RewardInfo(
        reward=reward,
        db_check=env_info.db_check,
        env_assertions=env_info.env_assertions,
        action_checks=action_info.action_checks,
        nl_assertions=judged_info.nl_assertions if judged_info is not None else None,
        communicate_checks=said_info.communicate_checks,
        reward_basis=basis,
        reward_breakdown=breakdown,
        info={
            "env": env_info.info,
            "nl": judged_info.info if judged_info is not None else None,
            "communicate": said_info.info,
            "action": action_info.info,
        },
    )
