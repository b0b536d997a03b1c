"""The checkpoint that a run starts from: the newest good one, checked before anything heavy starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.evaluation.resuming import check_resumed_tasks
from tau2_lightning.launch.manifest import damage, total_bytes
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.policy.identity import tokenizer_digest
from tau2_lightning.policy.loading import load_model_config
from tau2_lightning.policy.tiny import SIZES
from tau2_lightning.strategy.checkpoint import describe, fingerprint, read_meta
from tau2_lightning.telemetry.warned import warn

from .resuming import check_resumed, tell_of_tasks

DATAMODULE = "Tau2DataModule"  # Lightning's key of the datamodule's state in a checkpoint
DAMAGED = ".damaged"
GIB = 1 << 30


def resolve_checkpoint(config: RunConfig, folder: RunFolder) -> str | None:
    """The checkpoint to load, every byte of it checked, with ``last`` looked up in the run's folder.

    Of ``last``, damaged checkpoints are renamed to ``*.damaged`` and the newest good one is taken; the screen says so.
    Raises ConfigError when there is none, when a checkpoint given by its path is damaged, or when training would go on
    with other tasks than the checkpoint's (see `check_resumed_tasks`) or other adapters (`check_resumed`).
    """
    checkpoint = _chosen_checkpoint(config, folder)
    if checkpoint is not None and config.mode == "train":
        meta = read_meta(Path(checkpoint))
        state = meta.get(DATAMODULE)
        if state is not None and check_resumed_tasks(config, state.get("stamp")):
            tell_of_tasks(state.get("sampler", {}))
        check_resumed(config, meta)
    return checkpoint


def continued(folder: RunFolder, checkpoint: str | None) -> RunFolder:
    """``folder`` for a start that trains on from ``checkpoint``; without one, from nothing."""
    meta = {} if checkpoint is None else read_meta(Path(checkpoint))
    due = bool(meta.get("unfinished", {}).get("validates"))
    return replace(folder, batches_done=int(meta.get("weights_version", 0)), validates=due)


def _chosen_checkpoint(config: RunConfig, folder: RunFolder) -> str | None:
    if config.ckpt_path is None:
        return None
    if config.ckpt_path != "last":
        path = Path(config.ckpt_path)
        problem = _problem(path)
        if problem is not None:
            others = [other for other in _others(path) if _problem(other) is None]
            remedy = f"Take {others[0]}, which is whole" if others else "Give another checkpoint"
            raise ConfigError([Violation("ckpt_path", config.ckpt_path, f"is damaged: {problem}", remedy)])
        return config.ckpt_path
    found = folder.finished_checkpoints()
    for path in found:
        problem = _problem(path)
        if problem is None:
            if path != found[0]:
                print(f"notice: continuing from {path.name}, the newest checkpoint that is whole", file=sys.stderr)
            return str(path)
        if global_rank() == 0:
            aside = path.with_name(path.name + DAMAGED)
            warn(f"{path} is damaged ({problem}); it is kept as {aside.name}")
            path.rename(aside)
    raise ConfigError([_none_to_resume(folder, "no checkpoint that is whole" if found else "no checkpoint")])


def planned_checkpoint(config: RunConfig) -> str | None:
    """The checkpoint that a start would load, as far as a plan sees: digests are not computed, nothing is renamed.

    None without ``ckpt_path``, and where there is none to load, which `missing_checkpoint` says.
    """
    if config.ckpt_path != "last":
        return None if config.ckpt_path is None else str(config.ckpt_path)
    found = RunFolder(RunFolder.name(config)).last_checkpoint()
    return None if found is None else str(found)


def missing_checkpoint(config: RunConfig) -> Iterator[Violation]:
    """The violation of ``ckpt_path`` that names no checkpoint, or a damaged one, as far as a plan sees."""
    if config.ckpt_path == "last":
        if planned_checkpoint(config) is None:
            yield _none_to_resume(RunFolder(RunFolder.name(config)), "no checkpoint that is whole")
    elif config.ckpt_path is not None and (problem := damage(Path(config.ckpt_path), digests=False)) is not None:
        yield Violation("ckpt_path", config.ckpt_path, f"is damaged: {problem}", "Give another checkpoint")


def _none_to_resume(folder: RunFolder, what: str) -> Violation:
    remedy = "Name experiment_name and trial_name of the run to resume"
    return Violation("ckpt_path", "last", f"{folder.checkpoints} holds {what}", remedy)


def _others(path: Path) -> Iterator[Path]:
    """The other checkpoints beside ``path``, the newest first."""
    yield from (other for other in RunFolder(path.parent.parent).finished_checkpoints() if other.name != path.name)


def _problem(path: Path) -> str | None:
    """What is wrong with the checkpoint's files. Every byte is read on rank 0, whose choice all ranks load."""
    if global_rank() == 0 and path.is_dir() and (size := total_bytes(path)) > GIB:
        print(f"checking the {size / GIB:.0f} GiB of {path.name} ...", file=sys.stderr)
    problem = damage(path, digests=global_rank() == 0)
    if problem is not None:
        return problem
    try:
        read_meta(path)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  # a file without a digest, of an earlier version, may hold anything
        return f"meta.pt cannot be read: {type(error).__name__}"
    return None


def check_checkpoint(checkpoint: str | None, policy: Path) -> None:
    """Raise ConfigError, naming both, when ``checkpoint`` is of another model or tokenizer than those at ``policy``."""
    if checkpoint is None:
        return
    meta = read_meta(Path(checkpoint))
    stored, tokenizer = meta.get("model", {}), meta.get("tokenizer")
    here = fingerprint(load_model_config(policy))
    if stored != here:
        problem = f"holds {describe(stored)}, but {policy} is {describe(here)}"
        remedy = "Resume with the model it was made of"
        raise ConfigError([Violation("ckpt_path", checkpoint, problem, remedy)])
    present = tokenizer_digest(policy)
    if tokenizer and present and tokenizer != present:
        problem = f"was trained on tokens of the tokenizer {tokenizer}, but {policy} has {present}"
        remedy = "Resume with the tokenizer.json it was trained with"
        raise ConfigError([Violation("ckpt_path", checkpoint, problem, remedy)])


def started_from(checkpoint: str) -> Path | None:
    """The folder of the policy that the run of ``checkpoint`` started from; None if it is not on this machine."""
    stored = read_meta(Path(checkpoint)).get("policy_path")
    return Path(stored) if stored and Path(stored).is_dir() else None


def check_size(checkpoint: str, size: str) -> None:
    """Raise ConfigError when ``checkpoint`` is not of a tiny policy of ``size``, before that policy exists."""
    stored = read_meta(Path(checkpoint)).get("model", {})
    wrong = {key: value for key, value in SIZES[size].items() if stored.get(key, value) != value}
    if wrong:
        there = ", ".join(f"{key} {stored[key]}" for key in wrong)
        here = ", ".join(f"{key} {value}" for key, value in wrong.items())
        problem = f"holds a model with {there}; the tiny policy ({size}) has {here}"
        remedy = "Give actor.path or actor.size of the model it was made of"
        raise ConfigError([Violation("ckpt_path", checkpoint, problem, remedy)])
