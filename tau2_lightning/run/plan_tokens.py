"""What a plan says of the tokens of a step: those of its openings, and how many of them are different."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.policy.loading import describes_only, load_model_config
from tau2_lightning.rollout.chat.template import ChatFormatError
from tau2_lightning.strategy.fitting import why_not_shared

from .openings import Openings, openings_of


def token_lines(config: RunConfig) -> list[str]:
    """One line for each domain; nothing for a policy that is not on this machine, or an agent that is not ours."""
    path = Path(config.actor.path) if config.actor.path else None
    if path is None or not path.is_dir() or describes_only(path) or config.rollout.workflow is not None:
        return []
    try:
        found = openings_of(config, path)
    except (ChatFormatError, ConfigError):  # refused elsewhere
        return []
    return [*_lines(config, path, found)]


def step_tokens(opening: Openings, tasks: float, samples: int) -> tuple[float, float]:
    """All tokens of the openings of ``tasks`` x ``samples`` rows, and the different ones among them."""
    total = tasks * samples * opening.mean
    return total, min(total, opening.common + tasks * (opening.mean - opening.common))


def _lines(config: RunConfig, path: Path, found: dict[str, Openings]) -> Iterator[str]:
    apart = _why_computed_apart(config, path)
    once = "each of these goes through the model once" if apart is None else f"all go through the model: {apart}"
    for name, opening in found.items():
        share = config.weights[name] / sum(config.weights.values())
        tasks, samples = share * config.train_dataset.batch_size, config.gconfig.n_samples
        total, different = step_tokens(opening, tasks, samples)
        if total:
            yield (
                f"openings: {opening.mean:,.0f} tokens on average, of which all tasks of {name} share "
                f"{opening.common:,}; {tasks * samples:.0f} rows of a step open with {total:,.0f} tokens, "
                f"{different:,.0f} of them different ({different / total:.1%}); {once}"
            )


def _why_computed_apart(config: RunConfig, path: Path) -> str | None:
    for key, wanted in (("packing", config.actor.packing), ("enable_tree_training", config.actor.enable_tree_training)):
        if not wanted:
            return f"actor.{key}=false"
    return why_not_shared(load_model_config(path))
