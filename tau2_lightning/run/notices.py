"""What a user should know about a configuration that is accepted: shown at the start and in a plan, and kept in the run
folder's configuration and report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tau2_lightning.config.allocation import Allocation
from tau2_lightning.config.megatron_words import idle_keys
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import load_tasks
from tau2_lightning.errors import ConfigError
from tau2_lightning.policy.loading import describes_only, load_model_config
from tau2_lightning.strategy.fitting import why_not_packed, why_not_shared

from .native_types import slow_types


def notices(config: RunConfig) -> Sequence[str]:
    """One line each. Raises AllocationError when ``allocation_mode`` cannot be read."""
    given = Allocation.parse(config.allocation_mode).notices
    of_model = [*_of_types(config), *_of_rows(config), *_description(config)]
    return [*given, *_idle_keys(config), *of_model, *_of_tasks(config)]


def _of_tasks(config: RunConfig) -> Iterator[str]:
    """Tasks that are validated and trained on."""
    if config.mode == "validate" or config.trainer.limit_val_batches == 0:
        return
    for view in config.by_domain.values():
        e, valid = view.econfig, view.valid_dataset
        try:
            trained, scored = (
                {task.task_id for task in load_tasks(e.domain, split, solo_mode=bool(e.solo_mode))}
                for split in (view.train_dataset.split, valid.split)
            )
        except ConfigError:  # refused elsewhere
            continue
        if both := len(trained & scored):
            yield (
                f"{both} of the {len(scored)} tasks of {e.domain} in the validated split `{valid.split}` are trained "
                "on, too: their score measures memory, not skill"
            )


def _description(config: RunConfig) -> Iterator[str]:
    if config.actor.path is not None and describes_only(config.actor.path):
        yield f"actor.path={config.actor.path} holds a config.json only: nothing else of the model is checked"


def _idle_keys(config: RunConfig) -> Iterator[str]:
    if idle := idle_keys(config.actor.megatron):
        yield f"actor.megatron: {', '.join(idle)} have no effect; they say how megatron-core computes, not what"


def _of_types(config: RunConfig) -> Iterator[str]:
    if slow := list(slow_types(config.model_dump(include={"actor", "warm_start", "trainer", "cluster", "scheduler"}))):
        yield (
            "this processor computes bfloat16 in software, several times slower than float32: "
            f"{', '.join(slow)} can be auto or float32 (fp32) instead"
        )


def _of_rows(config: RunConfig) -> Iterator[str]:
    if config.actor.path is None or not config.actor.packing:
        return
    try:
        model = load_model_config(config.actor.path)
    except ConfigError:  # a folder that is made later, or one that is refused
        return
    if (reason := why_not_packed(model)) is not None:
        yield f"rows of {model.model_type!r} models are computed with their padding: {reason}"
    elif config.actor.enable_tree_training and (reason := why_not_shared(model)) is not None:
        yield f"a prefix that rows of a {model.model_type!r} model share is computed again for each row: {reason}"
