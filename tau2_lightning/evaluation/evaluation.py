"""One validation: its episodes, its summary, its rows in the report, its tau2 results file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import write_results
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.trajectory import EpisodeOutcome, Rollout

from .intervals import NAN, Estimate
from .pass_hat import trials_by_task
from .stamp import EvaluationStamp
from .summary import EvaluationSummary, summarize


@dataclass(frozen=True)
class Evaluation:
    """The finished episodes of one validation of one domain, and their summary.

    ``sampling`` holds what was sampled differently from ``gconfig``. ``stamp`` says what the scores are of; None where
    nobody gave one. ``number`` counts the validations of a start: the domains of one validation share it. ``trials``
    are (successes, finished trials) by task id.
    """

    domain: str
    split: str
    num_trials: int
    outcomes: tuple[EpisodeOutcome, ...]
    summary: EvaluationSummary
    sampled_tokens: int
    config: RunConfig
    weights_version: int = 0
    sampling: Mapping[str, float] = field(default_factory=dict)
    stamp: EvaluationStamp | None = None
    number: int = 1
    trials: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        domain: str,
        split: str,
        num_trials: int,
        rollouts: Sequence[Rollout],
        excluded: Mapping[str, int],
        config: RunConfig,
        *,
        tasks: Sequence[str] = (),
        weights_version: int = 0,
        sampling: Mapping[str, float] | None = None,
        stamp: EvaluationStamp | None = None,
        number: int = 1,
    ) -> Evaluation:
        """Summarise ``rollouts``; ``excluded`` counts episodes lost to infrastructure faults. ``tasks`` are the ids of
        all tasks of the evaluation, also of those without a finished episode.

        Rollouts of a user's own agent have no outcome: only their reward counts.
        """
        outcomes = tuple(rollout.outcome for rollout in rollouts if rollout.outcome is not None)
        tokens = sum(rollout.sampled_tokens for rollout in rollouts)
        others = [(rollout.task_id, rollout.reward) for rollout in rollouts if rollout.outcome is None]
        summary = summarize(outcomes, rewards=others, excluded=excluded, planned=dict.fromkeys(tasks, num_trials))
        scored = [(outcome.task_id, outcome.reward) for outcome in outcomes] + others
        return cls(
            domain,
            split,
            num_trials,
            outcomes,
            summary,
            tokens,
            config,
            weights_version=weights_version,
            sampling=sampling or {},
            stamp=stamp,
            number=number,
            trials=trials_by_task(scored),
        )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token was taken at every place."""
        return self.sampling.get("temperature", self.config.gconfig.temperature) == 0

    def without_dialogues(self) -> Evaluation:
        """A copy without tau2's simulations, which are most of its size."""
        return replace(self, outcomes=tuple(replace(outcome, simulation={}) for outcome in self.outcomes))

    @property
    def mean_tokens(self) -> float:
        """Sampled tokens of a finished episode; NaN without one."""
        return self.sampled_tokens / self.summary.episodes if self.summary.episodes else NAN

    def scalars(self) -> dict[str, float]:
        """Numbers for the logger, below ``eval/<domain>/<split>/`` (``<split>-greedy`` for a greedy one)."""
        prefix = f"eval/{self.domain}/{self.split}{'-greedy' if self.greedy else ''}/"
        tokens = {f"{prefix}mean_tokens": self.mean_tokens} if self.summary.episodes else {}
        return self.summary.as_scalars(prefix) | tokens

    def payload(self) -> dict[str, Any]:
        """Everything but the dialogues, as JSON-able data; ``metrics`` are what the logger gets."""
        return {
            "domain": self.domain,
            "split": self.split,
            "num_trials": self.num_trials,
            "greedy": self.greedy,
            "sampling": dict(self.sampling),
            "weights_version": self.weights_version,
            "metrics": self.scalars(),
            "summary": _plain(asdict(self.summary)),
            "stamp": self.stamp.payload() if self.stamp else None,
            "trials": {task_id: list(counts) for task_id, counts in self.trials.items()},
        }

    def table_rows(self) -> Iterator[tuple[str, str]]:
        """(label, text) pairs of the report."""
        s = self.summary
        if s.partial:
            yield "PARTIAL", f"{s.episodes} of {s.planned} episodes played"
        for k, estimate in s.pass_hat.items():
            yield f"pass^{k}", _text(estimate)
        for k in s.as_failures:
            yield f"pass^{k}, excluded left out", _text(s.pass_hat[k]) if k in s.pass_hat else "-"
            yield f"pass^{k}, excluded as failures", _text(s.as_failures[k])
            yield f"pass^{k}, excluded as successes", _text(s.as_successes[k])
        yield "pass^1 without transfer tasks", _text(s.pass_1_no_transfer)
        yield "transfer rate", _text(s.transfer_rate)
        yield "transfer rate where not asked for", _text(s.needless_transfer_rate)
        yield "turns", _number(s.mean_turns, ".1f")
        yield "tool errors per call", _number(s.tool_error_rate, ".3f")
        yield "sampled tokens an episode", _number(self.mean_tokens, ".0f")
        yield "ends", ", ".join(f"{kind} {n}" for kind, n in s.terminations.items()) or "-"
        yield "agent's mistakes", ", ".join(f"{kind} {n}" for kind, n in s.mistakes.items()) or "none"
        yield "user's faults", ", ".join(f"{kind} {n}" for kind, n in s.user_faults.items()) or "none"
        yield "episodes with one", str(s.with_user_faults)
        yield "episodes", str(s.episodes)
        yield "excluded episodes", ", ".join(f"{cause} {n}" for cause, n in s.excluded.items()) or "0"

    def write(self, path: Path) -> None:
        """Write a tau2 results file of the episodes that tau2 knows."""
        if not self.outcomes:
            return
        g, settings = self.config.gconfig, environment_settings(self.config.econfig)
        if settings.user.kind == "llm":  # the configuration may leave its name to the server
            settings = replace(settings, user=replace(settings.user, llm=self.outcomes[0].user))
        write_results(
            path,
            self.outcomes,
            settings,
            agent=self.config.actor.path or "tau2_lightning-tiny",
            num_trials=self.num_trials,
            seed=self.config.seed,
            agent_args={
                "temperature": g.temperature,
                "top_p": g.top_p,
                "max_tokens": g.max_new_tokens,
                **self.sampling,
            },
            stamp=self.stamp.payload() if self.stamp else None,
        )


def _text(estimate: Estimate) -> str:
    return "-" if estimate.tasks == 0 else f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _plain(value: Any) -> Any:
    """JSON has string keys and no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value
