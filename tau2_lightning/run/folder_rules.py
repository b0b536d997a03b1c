"""Rules for the folders of a run: nothing of an earlier run is lost, and what must be written can be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tau2_lightning.config.kept import ALLOWED, KeptBound
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import Violation
from tau2_lightning.launch.lock import RunLock
from tau2_lightning.launch.manifest import damage
from tau2_lightning.launch.ranks import Job, global_rank
from tau2_lightning.launch.run_folder import RunFolder


def check_folders(config: RunConfig) -> Iterator[Violation]:
    """The violations of ``output_dir``, ``cache_dir`` and ``trial_name``. Ranks above 0 find what rank 0 has made."""
    if global_rank():
        return
    for key, path in (("output_dir", config.output_dir), ("cache_dir", config.cache_dir)):
        problem = _why_not_writable(path.absolute())
        if problem is not None:
            yield Violation(key, str(path), problem, "Name a folder that this user may write to")
    in_use = RunLock(RunFolder.name(config)).refusal() if _starts_here(config) else None
    yield from check_reuse(config) if in_use is None else [in_use]
    try:
        KeptBound.parse(config.rollout.keep_rollouts)
    except ValueError as error:
        yield Violation(
            "rollout.keep_rollouts", config.rollout.keep_rollouts, str(error).partition(":")[0], f"Give {ALLOWED}"
        )


def check_reuse(config: RunConfig) -> Iterator[Violation]:
    """The violation of training anew in the folder of a run that has trained: it would write over its files.

    A run that trains there now is the lock's matter: ask that first.
    """
    if config.mode == "validate":
        return
    folder = RunFolder(RunFolder.name(config))
    kept = [path for path in folder.checkpoints.glob("*.ckpt") if path.is_dir()]
    if config.ckpt_path == "last" or not (kept or folder.policy.exists()):
        return
    another = "give it another trial_name"
    given = None if config.ckpt_path is None else Path(config.ckpt_path).absolute()
    if given is not None and given.parent == folder.checkpoints:
        whole = [path for path in folder.finished_checkpoints() if damage(path, digests=False) is None]
        newest = whole[0] if whole else given
        if given.name != newest.name:
            problem = f"is older than {newest.name} of the same run, which would be written over"
            remedy = f"Add ckpt_path=last to continue from {newest.name}, or {another} to branch off here"
            yield Violation("ckpt_path", config.ckpt_path, problem, remedy)
        return
    problem = f"{folder.root} holds a run that has trained already"
    remedy = f"Add ckpt_path=last to continue it, or {another}"
    yield Violation("trial_name", folder.root.name, problem, remedy)


def _starts_here(config: RunConfig) -> bool:
    """Whether this process is to be the run: a job that is submitted now may begin when the folder is free."""
    return config.scheduler.type == "local" or Job.current() is not None


def _why_not_writable(path: Path) -> str | None:
    """Why a folder that may not exist yet cannot be written, in words; None when it can."""
    for existing in (path, *path.parents):
        if existing.exists():
            if not existing.is_dir():
                return f"{existing} is no folder"
            return None if os.access(existing, os.W_OK | os.X_OK) else f"{existing} cannot be written"
    return None
