"""The parity guard: after a weight sync, engine and trainer must compute the same log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tau2_lightning.errors import ParityError
from tau2_lightning.rollout.engine.generation import Engine


@dataclass(frozen=True)
class ParityReport:
    """Absolute differences of log-probs (nats) between engine and trainer, over ``tokens`` tokens."""

    max: float
    mean: float
    tokens: int


@runtime_checkable
class Replicated(Protocol):
    """An engine of several servers, each of which holds the weights."""

    async def score_everywhere(self, token_ids: Sequence[int], *, deadline: float) -> Mapping[str, list[float]]: ...


def default_tolerance(dtype: str, precision: str, *, on_cpu: bool) -> float:
    """The allowed difference (nats) between log-probs of equal weights.

    ``dtype`` is the engine's, ``precision`` the trainer's. Float32 on a CPU agrees to 1e-5. On an H100, vLLM's float32
    attention (Triton) multiplied in TF32, with differences of up to .038 in seven syncs of the tiny policy. Engines now
    multiply in float32 there (TRITON_F32_DEFAULT in ``server_environment``); the wider tolerance stays until that is
    measured.
    """
    if dtype != "float32" or precision != "fp32":
        return 0.25
    return 1e-3 if on_cpu else 0.1


async def check_parity(
    engine: Engine,
    rows: Sequence[Sequence[int]],
    expected: Sequence[Sequence[float]],
    *,
    tolerance: float,
    deadline: float = 60.0,
    version: int | None = None,
) -> ParityReport:
    """Score ``rows`` (token ids) in every server of the engine and compare with ``expected``, the trainer's log-probs.

    ``expected[i]`` has len(rows[i]) - 1 values: the log-prob of each token given those before it, at temperature 1.
    Raises ParityError when the largest difference exceeds ``tolerance`` or is not a number; ValueError on lengths.
    """
    for row, values in zip(rows, expected, strict=True):
        if len(values) != len(row) - 1:
            raise ValueError(f"a row of {len(row)} tokens needs {len(row) - 1} log-probs, not {len(values)}")
    scored = await asyncio.gather(*(_scores(engine, row, deadline) for row in rows))
    found = [
        (abs(theirs - ours), name, index, position, theirs, ours)
        for index, (answers, trainer_row) in enumerate(zip(scored, expected, strict=True))
        for name, engine_row in answers.items()
        for position, (theirs, ours) in enumerate(zip(engine_row, trainer_row, strict=True), start=1)
    ]
    if not found:
        raise ValueError("parity needs at least one token to compare")
    # NaN counts as the largest difference; ``max`` alone would skip it.
    worst = max(found, key=lambda item: float("inf") if item[0] != item[0] else item[0])
    report = ParityReport(max=worst[0], mean=sum(item[0] for item in found) / len(found), tokens=len(found))
    if not report.max <= tolerance:
        difference, name, index, position, theirs, ours = worst
        label = "" if version is None else f" of version {version}"
        raise ParityError(
            f"weights{label} differ between engine and trainer: log-prob {theirs:.6f} in {name}, {ours:.6f} in "
            f"the trainer at row {index}, token {position} (difference {difference:.2e}, mean {report.mean:.2e} over "
            f"{report.tokens} tokens, tolerance {tolerance:g}). Episodes sampled now would train another model than "
            "the one that sampled them. Usual causes: a tied lm_head that kept its old weights, a stale prefix cache, "
            "an engine dtype below the trainer's, a weight name the engine does not know."
        )
    return report


async def _scores(engine: Engine, row: Sequence[int], deadline: float) -> Mapping[str, list[float]]:
    answers = await engine.score_everywhere(row, deadline=deadline) if isinstance(engine, Replicated) else {}
    # No answers: no server is ready at the moment, and ``score`` waits for one.
    return answers or {"the engine": await engine.score(row, deadline=deadline)}
