"""Evaluations as tau2 results files: ``tau2 evaluate-trajs`` scores them again, ``tau2 view`` opens them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.blueprints import blueprint
from tau2_lightning.environment.settings import EnvironmentSettings, TaskRef
from tau2_lightning.environment.tasks import find_task, get_task
from tau2_lightning.rollout.trajectory import EpisodeOutcome

# tau2 tells solo runs by these two names; a user of ours is named as what it is.
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
) -> Path:
    """Write the episodes of one evaluation as one tau2 results file, and return its path.

    ``agent`` names the model and ``agent_args`` its sampling arguments. Trials are numbered per task in the order
    given. The file appears whole or not at all. Raises ConfigError for an outcome whose task the domain lacks.
    """
    results = api.Results(
        info=_info(settings, agent, num_trials, seed, dict(agent_args or {})),
        tasks=[get_task(ref) for ref in _refs(outcomes, settings)],
        simulations=_simulations(outcomes),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(results.model_dump_json(indent=4), encoding="utf-8")
    partial.replace(path)
    return path


def _refs(outcomes: Sequence[EpisodeOutcome], settings: EnvironmentSettings) -> list[TaskRef]:
    ids = dict.fromkeys(outcome.task_id for outcome in outcomes)
    return [find_task(settings.domain, task_id) for task_id in ids]


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
    implementation = api.SOLO_AGENT if settings.solo_mode else api.DIALOGUE_AGENT
    return api.Info(
        git_commit="unknown",
        num_trials=num_trials,
        max_steps=settings.max_steps,
        max_errors=settings.max_errors,
        user_info=api.UserInfo(
            implementation=_USERS[user.kind], llm=user.llm or None, llm_args=dict(user.llm_args) or None
        ),
        agent_info=api.AgentInfo(implementation=implementation, llm=agent, llm_args=agent_args),
        environment_info=blueprint(settings.domain, settings.solo_mode).info(),
        seed=seed,
    )
