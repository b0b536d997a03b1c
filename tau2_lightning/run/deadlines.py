"""The deadline of every phase of a run, derived from a few keys in one place; docs/reliability.md prints the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.rollout.deadlines import Limits, training_episodes
from tau2_lightning.rollout.engine.sleep import SLEEP_SECONDS
from tau2_lightning.warm_start.work import WAIT_SECONDS

from .plan_validation import validation_episodes

# A phase whose own work ends at its deadline gets so many seconds more, for that work to say what was late.
OWN_SECONDS = 60.0
# A collective outlasts what rank 0 does alone by so many seconds.
COLLECTIVE_SECONDS = 600.0


@dataclass(frozen=True)
class Deadline:
    """``seconds`` that a phase may take, the ``keys`` that they follow from, and what happens ``then``.

    ``own``: the work of the phase ends itself then, and its error is the more precise one.
    """

    seconds: float
    keys: str
    then: str
    own: bool = False

    @property
    def last(self) -> float:
        """Seconds after which the phase is ended from outside."""
        return self.seconds + OWN_SECONDS if self.own else self.seconds


def deadlines_of(config: RunConfig) -> dict[str, Deadline]:
    """Every phase of ``config`` with its deadline. The phases of the clock have its names (`telemetry.phases`)."""
    r, t, limits = config.rollout, config.trainer, Limits.of(config)
    rollout = limits.batch(training_episodes(config))
    # Weights are published and compared, and once more when they differ; restarted engines are waited for.
    compared = limits.scoring(r.weight_sync.parity_rows * config.gconfig.max_tokens, least=r.weight_sync.timeout)
    sync = 2 * (r.weight_sync.timeout + compared) + 2 * r.engine_start_timeout
    found = {
        "warm start": Deadline(WAIT_SECONDS, "none (an hour)", "the run ends"),
        "engine start": Deadline(
            r.engine_start_timeout, "rollout.engine_start_timeout", "the run ends, with the end of the log", own=True
        ),
        "engine sleep": Deadline(SLEEP_SECONDS, f"none ({SLEEP_SECONDS:g} s)", "the run ends", own=True),
        "generate": Deadline(
            limits.request,
            "rollout.request_timeout; null: max_new_tokens, tokens_per_second",
            "the tokens so far are the turn; an engine without progress is restarted, and the request sent again",
            own=True,
        ),
        "user": Deadline(
            config.econfig.user_deadline,
            "econfig.user_deadline",
            "the episode is played again, then excluded",
            own=True,
        ),
        "environment": Deadline(
            limits.episode,
            "as for episode",
            "as for episode; a tool that blocks the loop of all episodes is named in the report of the rollout",
            own=True,
        ),
        "episode": Deadline(
            limits.episode,
            "rollout.episode_timeout; null: max_steps, max_tokens, tokens_per_second",
            "it is played again rollout.retries times, then excluded",
            own=True,
        ),
        "rollout": Deadline(
            rollout,
            "rollout.collect_timeout; null: all attempts of the episodes, at least 30 min",
            "the batch goes on without the episodes that still run",
            own=True,
        ),
        "validate": Deadline(
            validation_seconds(config, limits),
            "valid_dataset.timeout, or as for rollout",
            "with valid_dataset.timeout the finished episodes count; else the run ends",
            own=True,
        ),
        "train": Deadline(t.train_timeout, "trainer.train_timeout", "the run ends"),
        "weight sync": Deadline(
            sync,
            "2 x rollout.weight_sync.timeout + 2 x the comparison of rows + 2 x engine_start_timeout",
            "the run ends; an engine that is late is restarted at weight_sync.timeout",
            own=True,
        ),
        "save": Deadline(t.save_timeout, "trainer.save_timeout", "the run ends; older checkpoints are as they were"),
    }
    alone = max(found[name].seconds for name in ("engine start", "rollout", "validate", "weight sync", "save", "train"))
    found["collective"] = Deadline(
        alone + COLLECTIVE_SECONDS,
        "the longest phase that rank 0 spends alone + 10 min",
        "the run ends; a rank that is gone or frozen is found after trainer.rank_timeout",
        own=True,
    )
    return found


def collective_timeout(deadlines: Mapping[str, Deadline]) -> timedelta:
    """How long a rank waits in a collective: longer than rank 0 may need for the work that it does alone."""
    return timedelta(seconds=deadlines["collective"].seconds)


def validation_seconds(config: RunConfig, limits: Limits) -> float:
    """The time limit of one validation of all domains, in seconds; domains whose tasks are not known count for none."""
    episodes = validation_episodes(config)
    views = config.by_domain.items()
    return limits.validation([(view.valid_dataset.timeout, episodes.get(name, 0)) for name, view in views])[1]
