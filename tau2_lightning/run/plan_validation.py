"""What a plan says of validations: which tasks, how many episodes, and of what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.evaluation.plan import sampling_of


def validation_in_words(view: RunConfig) -> Iterator[str]:
    v, played = view.valid_dataset, number_of_tasks(view)
    if not validates(view):
        yield "no validation"
        return
    if played is None:
        yield f"validate on {'' if v.limit is None else f'at most {v.limit} tasks of '}split `{v.split}`"
    else:
        chosen = f"{v.limit} of {played}" if v.limit is not None and v.limit < played else f"all {played}"
        yield f"validate on {chosen} tasks of split `{v.split}`"
    yield f"{v.num_trials} trials each"
    yield from (f"{name} {value:g}" for name, value in sampling_of(v).items())
    if v.timeout is not None:
        yield f"at most {v.timeout:g} s"


def validates(config: RunConfig) -> bool:
    """Whether the run plays a validation at any time."""
    t = config.trainer
    ever = config.mode == "validate" or t.validate_before or t.validate_after or bool(t.validate_every_n_epochs)
    return t.limit_val_batches != 0 and ever


def number_of_tasks(view: RunConfig) -> int | None:
    """The tasks of the split for validations that can be played, before any limit; None where it is not known."""
    from tau2_lightning.environment import check_tau2, load_tasks

    e = view.econfig
    if e.solo_mode is None or check_tau2():
        return None
    try:
        return len(load_tasks(e.domain, view.valid_dataset.split, solo_mode=e.solo_mode))
    except ConfigError:
        return None


def validation_episodes(config: RunConfig) -> dict[str, int]:
    """The episodes of one validation by domain; domains whose tasks are not known are left out."""
    found = {}
    for name, view in config.by_domain.items():
        played, v = number_of_tasks(view), view.valid_dataset
        if played is not None:
            found[name] = min(played, v.limit or played) * v.num_trials
    return found


def validation_line(config: RunConfig, checkpoint: str | None) -> str:
    """The work of ``mode=validate``: whose policy plays how many episodes."""
    by_domain = validation_episodes(config)
    parts = []
    for name, episodes in by_domain.items():
        trials = config.by_domain[name].valid_dataset.num_trials
        parts.append(f"{episodes // trials} tasks of {name} x {trials} trials")
    whose = f"the checkpoint {Path(checkpoint).name}" if checkpoint is not None else "the starting policy"
    counted = f"{' + '.join(parts)} = {sum(by_domain.values())} episodes" if parts else "tasks that are not known here"
    unknown = [name for name in config.by_domain if name not in by_domain] if parts else []
    return f"validation: {counted}" + (f" and those of {', '.join(unknown)}" if unknown else "") + f", of {whose}"
