"""The parity guard: after a weight sync, engine and trainer must compute the same log-probabilities."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from tau2_lightning.errors import ParityError
from tau2_lightning.rollout.engine.generation import Engine, Scores


@dataclass(frozen=True)
class ParityReport:
    """Absolute differences of log-probs (nats) between engine and trainer, over ``tokens`` tokens."""

    max: float
    p99: float
    mean: float
    tokens: int


@dataclass(frozen=True)
class Tolerance:
    """Upper bounds (nats) of the mean difference, of its 99th percentile, and of the largest difference.

    Rounding makes a few tokens differ much and most of them little, so the largest difference says little about a
    bfloat16 model; a wrong tensor makes most tokens differ.
    """

    mean: float
    p99: float
    max: float

    @classmethod
    def of(cls, mean: float) -> Tolerance:
        """10 times ``mean`` for the 99th percentile, 100 times for the largest difference."""
        return cls(mean, 10 * mean, 100 * mean)

    @classmethod
    def largest(cls, value: float) -> Tolerance:
        """No difference above ``value``."""
        return cls(value, value, value)

    def exceeded(self, report: ParityReport) -> list[str]:
        """The statistics of ``report`` that are out of bounds or not numbers."""
        bounds = {"mean": self.mean, "p99": self.p99, "max": self.max}
        return [
            f"{name} {value:.2e} > {bound:g}"
            for name, bound in bounds.items()
            if not (value := getattr(report, name)) <= bound
        ]


@runtime_checkable
class Replicated(Protocol):
    """An engine of several servers, each of which holds the weights."""

    async def score_everywhere(self, token_ids: Sequence[int], *, deadline: float) -> Mapping[str, Scores]: ...


def default_tolerance(dtype: str, precision: str, *, on_cpu: bool) -> Tolerance:
    """The allowed differences between log-probs of equal weights.

    ``dtype`` is the engine's, ``precision`` the trainer's. Float32 on a CPU agrees to 1e-5. On an H100, vLLM's float32
    attention (Triton) multiplied in TF32, with differences of up to .038 in seven syncs of the tiny policy. Engines now
    multiply in float32 there (TRITON_F32_DEFAULT in ``server_environment``); the wider tolerance stays until that is
    measured. Two bfloat16 implementations of SmolLM2-135M with equal weights differ by .04 on average and by .24 to .32
    at most, over rendered prompts.
    """
    if dtype != "float32" or precision != "fp32":
        return Tolerance.of(0.1)
    return Tolerance.of(1e-4 if on_cpu else 1e-2)


async def check_parity(
    engine: Engine,
    rows: Sequence[Sequence[int]],
    expected: Sequence[Sequence[float]],
    *,
    tolerance: Tolerance,
    positions: Sequence[Sequence[int]] | None = None,
    deadline: float = 300.0,
    version: int | None = None,
) -> ParityReport:
    """Score ``rows`` (token ids) in every server of the engine and compare with ``expected``, the trainer's log-probs.

    ``positions[i]`` are the indices of the compared tokens of row i (None: all but the first), and ``expected[i]`` the
    log-prob of each of them given those before it, at temperature 1. ``version`` is the version that every server must
    have: weights of a few steps ago may differ by less than rounding, so the numbers are compared, too. ``deadline``
    (seconds) holds for each row. Raises ParityError when a server serves another version, or when a statistic of the
    differences exceeds ``tolerance`` or is not a number; ValueError on lengths.
    """
    compared = [list(range(1, len(row))) for row in rows] if positions is None else positions
    for at, values in zip(compared, expected, strict=True):
        if len(values) != len(at):
            raise ValueError(f"a row of {len(at)} compared tokens needs {len(at)} log-probs, not {len(values)}")
    scored = await asyncio.gather(*(_scores(engine, row, deadline) for row in rows))
    _check_versions(scored, version)
    found = [
        (abs(theirs - ours), name, index, position, theirs, ours)
        for index, (answers, at, values) in enumerate(zip(scored, compared, expected, strict=True))
        for name, scores in answers.items()
        for position, ours in zip(at, values, strict=True)
        for theirs in (scores.logprobs[position - 1],)
    ]
    if not found:
        raise ValueError("parity needs at least one token to compare")
    # NaN counts as the largest difference; ``max`` alone would skip it.
    worst = max(found, key=lambda item: math.inf if math.isnan(item[0]) else item[0])
    differences = np.array([item[0] for item in found])
    p99 = float(np.quantile(differences, 0.99, method="higher"))
    report = ParityReport(max=worst[0], p99=p99, mean=float(differences.mean()), tokens=len(found))
    if broken := tolerance.exceeded(report):
        _, name, index, position, theirs, ours = worst
        label = "" if version is None else f" of version {version}"
        raise ParityError(
            f"weights{label} differ between engine and trainer: {', '.join(broken)} over {report.tokens} tokens; most "
            f"at row {index}, token {position}: log-prob {theirs:.6f} in {name}, {ours:.6f} in the trainer. Episodes "
            "sampled now would train another model than the one that sampled them. Usual causes: a tied lm_head that "
            "kept its old weights, a stale prefix cache, an engine dtype below the trainer's, a weight name the engine "
            "does not know."
        )
    return report


def _check_versions(scored: Sequence[Mapping[str, Scores]], version: int | None) -> None:
    stale = {
        name: scores.version
        for answers in scored
        for name, scores in answers.items()
        if version is not None and scores.version not in (None, version)
    }
    if stale:
        served = ", ".join(f"{name} serves {_label(found)}" for name, found in stale.items())
        raise ParityError(
            f"weights differ between engine and trainer: {served}, the trainer is at version {version}. Usual causes: "
            "a server that was started again behind its address, another run that publishes to the same server."
        )


def _label(version: int | None) -> str:
    return "weights that no run has published" if version == -1 else f"weights of version {version}"


async def _scores(engine: Engine, row: Sequence[int], deadline: float) -> Mapping[str, Scores]:
    answers = await engine.score_everywhere(row, deadline=deadline) if isinstance(engine, Replicated) else {}
    # No answers: no server is ready at the moment, and ``score`` waits for one.
    return answers or {"the engine": Scores(await engine.score(row, deadline=deadline), None)}
