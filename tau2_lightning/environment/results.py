"""Evaluations as tau2 results files: ``tau2 evaluate-trajs`` scores them again, ``tau2 view`` opens them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from tau2_lightning.config.secrets import masked
from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.trajectory import EpisodeOutcome

from . import tau2_api as api
from .knowledge import PER_TASK
from .scoring import plan_of, replayed_reward
from .settings import EnvironmentSettings, TaskRef
from .tasks import find_task, scored_task

log = structlog.get_logger(__name__)

POLICY_PER_TASK = "(Policy is task-specific - see 'policy' field in each simulation)"  # tau2's own words
# tau2 recognises solo runs and simulated users by its own names. The scripted user is not one of its kinds.
_USERS = {"none": api.SOLO_USER, "llm": api.SIMULATED_USER, "scripted": "scripted_user"}


def write_results(
    path: Path,
    outcomes: Sequence[EpisodeOutcome],
    settings: EnvironmentSettings,
    *,
    agent: str,
    num_trials: int,
    seed: int | None = None,
    agent_args: Mapping[str, Any] | None = None,
    stamp: Mapping[str, Any] | None = None,
) -> Path:
    """Write the episodes of one evaluation as one tau2 results file, and return its path.

    ``agent`` names the model and ``agent_args`` its sampling arguments. Trials are numbered per task in the order
    given. Episodes that tau2 cannot replay (see ``scoring.tau2_can_score``) would make its tools reject the whole file;
    they are written beside it as ``<name>.not_replayable.json``. A file appears complete or not at all. Raises
    ConfigError for an outcome whose task the domain lacks. ``stamp`` is written beside tau2's own keys, which tau2's
    tools ignore, as ``stamp``.
    """
    info = _info(settings, agent, num_trials, seed, dict(agent_args or {}))
    refs = {outcome.task_id: find_task(settings.domain, outcome.task_id) for outcome in outcomes}
    good: list[Any] = []
    bad: list[Any] = []
    for outcome, run in zip(outcomes, _simulations(outcomes), strict=True):
        (good if _replays(outcome, refs[outcome.task_id], settings) else bad).append(run)
    _write(path, info, good, refs, settings, stamp)
    if bad:
        apart = path.with_suffix(".not_replayable.json")
        _write(apart, info, bad, refs, settings, stamp)
        log.warning(
            "tau2 cannot score some episodes again; they are in a file of their own", n=len(bad), file=str(apart)
        )
    return path


def _replays(outcome: EpisodeOutcome, ref: TaskRef, settings: EnvironmentSettings) -> bool:
    try:
        replayed_reward(outcome.simulation, ref, settings, strict=True)
    except InfrastructureFault:
        return False
    return True


def _write(
    path: Path,
    info: Any,
    simulations: list[Any],
    refs: Mapping[str, TaskRef],
    settings: EnvironmentSettings,
    stamp: Mapping[str, Any] | None,
) -> None:
    tasks = [scored_task(refs[task_id], settings) for task_id in dict.fromkeys(run.task_id for run in simulations)]
    results = api.Results(info=info, tasks=tasks, simulations=simulations)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    content = results.model_dump(mode="json") | ({"stamp": dict(stamp)} if stamp else {})
    partial.write_text(json.dumps(content, indent=4), encoding="utf-8")
    partial.replace(path)


def _simulations(outcomes: Sequence[EpisodeOutcome]) -> list[Any]:
    trials: Counter[str] = Counter()
    simulations = []
    for outcome in outcomes:
        run = api.SimulationRun.model_validate(dict(outcome.simulation))
        simulations.append(run.model_copy(update={"trial": trials[outcome.task_id]}))
        trials[outcome.task_id] += 1
    return simulations


def _info(
    settings: EnvironmentSettings, agent: str, num_trials: int, seed: int | None, agent_args: dict[str, Any]
) -> Any:
    user = settings.user
    environment = plan_of(settings).info()
    retrieval: dict[str, Any] = {}
    if settings.retrieval.config:
        options = dict(settings.retrieval.options)
        retrieval = {"retrieval_config": settings.retrieval.config, "retrieval_config_kwargs": options or None}
        if settings.retrieval.config == PER_TASK:
            environment.policy = POLICY_PER_TASK
    implementation = api.SOLO_AGENT if settings.solo_mode else api.DIALOGUE_AGENT
    return api.Info(
        git_commit="unknown",
        num_trials=num_trials,
        max_steps=settings.max_steps,
        max_errors=settings.max_errors,
        user_info=api.UserInfo(
            implementation=_USERS[user.kind],
            llm=user.llm or None,
            llm_args=masked("econfig.user_llm_args", dict(user.llm_args)) or None,
        ),
        agent_info=api.AgentInfo(implementation=implementation, llm=agent, llm_args=agent_args),
        environment_info=environment,
        seed=seed,
        **retrieval,
    )
