"""tau2-bench: tasks, databases, users, demonstrations, scoring and results files. The only code that imports tau2.

Importing this package is cheap; tau2 itself is imported with the first task or episode.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .settings import DomainInfo, EnvironmentSettings, TaskRef, UserSettings

if TYPE_CHECKING:
    from .contract import check_tau2
    from .demonstrations import Demonstration, Playable, generate_demonstrations
    from .dialogue import Dialogue
    from .judge import judge_stamp
    from .model_watch import use_of_models, waits_for_models
    from .outcomes import training_reward
    from .preflight import check_models
    from .results import write_results
    from .scoring import ScoreMismatch, cross_check, official_reward
    from .simulations import AgentsViews, UnusableSimulation, has_other_rules, was_solo
    from .task_files import split_name
    from .tasks import check_domain, check_split, describe_domain, find_task, list_domains, load_tasks
    from .user_model import served_model

_HOMES = {
    "AgentsViews": "simulations",
    "Demonstration": "demonstrations",
    "Dialogue": "dialogue",
    "Playable": "demonstrations",
    "ScoreMismatch": "scoring",
    "UnusableSimulation": "simulations",
    "check_domain": "tasks",
    "check_models": "preflight",
    "check_split": "tasks",
    "check_tau2": "contract",
    "cross_check": "scoring",
    "describe_domain": "tasks",
    "find_task": "tasks",
    "generate_demonstrations": "demonstrations",
    "has_other_rules": "simulations",
    "judge_stamp": "judge",
    "list_domains": "tasks",
    "load_tasks": "tasks",
    "official_reward": "scoring",
    "served_model": "user_model",
    "split_name": "task_files",
    "training_reward": "outcomes",
    "use_of_models": "model_watch",
    "waits_for_models": "model_watch",
    "was_solo": "simulations",
    "write_results": "results",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Each of these imports also stands above, for type checkers and lint-imports.
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)  # noqa: TID251


__all__ = [
    "AgentsViews",
    "Demonstration",
    "Dialogue",
    "DomainInfo",
    "EnvironmentSettings",
    "Playable",
    "ScoreMismatch",
    "TaskRef",
    "UnusableSimulation",
    "UserSettings",
    "check_domain",
    "check_models",
    "check_split",
    "check_tau2",
    "cross_check",
    "describe_domain",
    "find_task",
    "generate_demonstrations",
    "has_other_rules",
    "judge_stamp",
    "list_domains",
    "load_tasks",
    "official_reward",
    "served_model",
    "split_name",
    "training_reward",
    "use_of_models",
    "waits_for_models",
    "was_solo",
    "write_results",
]
