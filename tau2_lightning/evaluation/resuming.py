"""The tasks that a run trains on, the stamp of them that its checkpoints hold, and the check of them at a resume."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import TaskRef, load_tasks, split_name
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.ranks import global_rank

from .stamp import NONE, EvaluationStamp

ACCEPT = "train_dataset.accept_changed_tasks"
# What decides which tasks are drawn in which order. A difference in another field is reported, not refused.
DECIDES = ("tau2", "split", "n_tasks", "tasks", "weight")


def tasks_of(config: RunConfig, split: str) -> tuple[TaskRef, ...]:
    """The tasks of ``split`` that can be played; ``config`` is the configuration of one domain."""
    return load_tasks(config.econfig.domain, split, solo_mode=bool(config.econfig.solo_mode))


def training_tasks(config: RunConfig) -> tuple[TaskRef, ...]:
    """The training tasks of one domain's configuration."""
    return tasks_of(config, config.train_dataset.split)


def training_stamp(config: RunConfig) -> dict[str, Any]:
    """What a run trains on, as plain data: its seed, and each domain's weight and stamp of its training tasks."""
    domains = {}
    for name, view in config.by_domain.items():
        settings, tasks = environment_settings(view.econfig), training_tasks(view)
        stamp = EvaluationStamp.of(settings, split_name(view.train_dataset.split), tasks)
        domains[name] = {"weight": config.weights[name], **stamp.payload()}
    return {"seed": config.seed, "domains": domains}


def check_resumed_tasks(config: RunConfig, saved: Mapping[str, Any] | None) -> bool:
    """Whether the order of tasks goes on from a checkpoint whose training stamp is ``saved``; False: it starts anew.

    Raises ConfigError, naming old and new values, when tasks, domains, weights, seed or tau2 are others than in the
    checkpoint and ``train_dataset.accept_changed_tasks`` is not set. Other differences, and checkpoints of earlier
    versions, which hold no stamp, are reported on the screen.
    """
    if not saved:
        _say(
            "the checkpoint does not say which tasks it was trained on (an earlier version wrote it): assuming the same"
        )
        return True
    here = training_stamp(config)
    changed, other = _compared(saved, here)
    if other:
        _say(f"resuming under changed circumstances: {'; '.join(other)}")
    if not changed:
        return True
    if not config.train_dataset.accept_changed_tasks:
        problem = f"the checkpoint was trained on other tasks (checkpoint -> now): {'; '.join(changed)}"
        remedy = f"Give the checkpoint's values, or set {ACCEPT}=true: weights are kept, the order of tasks starts anew"
        raise ConfigError([Violation("ckpt_path", config.ckpt_path, problem, remedy)])
    _say(f"other tasks accepted, their order starts anew (checkpoint -> now): {'; '.join(changed)}")
    return False


def _compared(saved: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Differences that change which tasks are drawn, and the others; each as ``name: old -> new``."""
    changed: list[str] = []
    other: list[str] = []
    if saved.get("seed") != here["seed"]:
        changed.append(f"seed: {saved.get('seed', NONE)} -> {here['seed']}")
    theirs, ours = saved.get("domains", {}), here["domains"]
    if list(theirs) != list(ours):
        changed.append(f"domain: {'+'.join(theirs)} -> {'+'.join(ours)}")
    for name in [name for name in ours if name in theirs]:
        prefix = f"{name}." if len(ours) > 1 else ""
        for key in ours[name]:
            old, new = theirs[name].get(key, NONE), ours[name][key]
            if old != new and key != "digest":
                (changed if key in DECIDES else other).append(f"{prefix}{key}: {old} -> {new}")
    return changed, other


@cache  # once per process: the checkpoint is read for the validation before training, too
def _say(text: str) -> None:
    if global_rank() == 0:
        print(text, file=sys.stderr)
