"""The numbers of a run in the order in which one looks at them: W&B's workspace and TensorBoard's custom scalars."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import split_name
from tau2_lightning.evaluation.macro import PREFIX
from tau2_lightning.evaluation.plan import sampling_of


@dataclass(frozen=True)
class Plot:
    """Curves in one picture. ``band``: the first is a value, and the others are the bounds of its interval."""

    title: str
    names: tuple[str, ...]
    band: bool = False


@dataclass(frozen=True)
class Chapter:
    """Pictures below one heading; ``first``: it is open at the start."""

    title: str
    plots: tuple[Plot, ...]
    first: bool = False


def validation_prefixes(config: RunConfig) -> list[str]:
    """What the names of the validations' numbers begin with; the mean over several domains comes first."""
    found = []
    for domain, view in config.by_domain.items():
        temperature = sampling_of(view.valid_dataset).get("temperature", view.gconfig.temperature)
        found.append(f"eval/{domain}/{split_name(view.valid_dataset.split)}{'' if temperature else '-greedy'}/")
    return [PREFIX, *found] if len(found) > 1 else found


def score_names(config: RunConfig) -> list[str]:
    """The names of pass^1 of the validations of a run."""
    return [f"{prefix}pass^1" for prefix in validation_prefixes(config)]


def layout(config: RunConfig) -> list[Chapter]:
    """The chapters for a run with this configuration."""
    scores = [Plot(name, (name, f"{name}_low", f"{name}_high"), band=True) for name in score_names(config)]
    rates = tuple(
        Plot(f"{prefix}transfer_rate", (f"{prefix}transfer_rate",))
        for prefix in validation_prefixes(config)
        if prefix != PREFIX
    )
    return [
        Chapter("Does it learn", (*scores, Plot("reward", ("reward/mean",)), *rates), first=True),
        Chapter(
            "What is played",
            (
                Plot("groups without signal", ("frac_reward_zero_std",)),
                Plot("transfers", ("transfer_rate", "transfer_rate/unasked")),
                Plot("turns", ("effective/num_turns/mean",)),
                Plot("tokens of a turn", ("completions/mean_length",)),
                Plot("malformed and cut-off turns", ("invalid_format_rate", "completions/clipped_ratio")),
                Plot("excluded episodes", ("dispatcher/errored/all", "dispatcher/attempts_failed")),
                Plot("faults of the user", ("user_faults",)),
            ),
            first=True,
        ),
        Chapter(
            "Is the update sound",
            (
                Plot("loss", ("loss/mean",)),
                Plot("entropy", ("entropy/all/mean",)),
                Plot("gradient norm", ("optim/grad_norm",)),
                Plot("clipped tokens", ("clip_ratio/region_mean",)),
                Plot("learning rate", ("optim/lr",)),
            ),
        ),
        Chapter(
            "Do engine and trainer agree",
            (
                Plot("mismatch", ("mismatch_kl/all/mean",)),
                Plot("parity guard", ("sync/logp_difference/mean", "sync/logp_difference/p99")),
                Plot("age of tokens", ("off_policy/mean", "off_policy/max")),
                Plot("staleness of episodes", ("batch/staleness/mean", "batch/staleness/max")),
            ),
        ),
        Chapter(
            "Where the time goes",
            (
                Plot("phases of a step", ("time/rollout", "time/forward_backward", "time/broadcast_weights")),
                Plot("sampled tokens per second", ("perf/rollout_tokens_per_second",)),
                Plot("trained tokens per second", ("perf/throughput",)),
                Plot("idle", ("idle/trainer", "idle/engine")),
                Plot("key-value cache", ("engine/kv_usage/mean", "engine/kv_usage/max")),
                Plot("requests", ("engine/running/mean", "engine/queue/mean")),
            ),
        ),
    ]


def as_data(chapters: list[Chapter]) -> list[dict[str, Any]]:
    """The layout as JSON-able data."""
    return [asdict(chapter) for chapter in chapters]
