"""The guard after every weight sync: engine and trainer must give the same log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tau2_lightning.errors import ParityError
from tau2_lightning.rollout.generation import Engine


@dataclass(frozen=True)
class ParityReport:
    """Absolute differences of log-probs (nats) between engine and trainer over ``tokens`` tokens."""

    max: float
    mean: float
    tokens: int


async def check_parity(
    engine: Engine,
    rows: Sequence[Sequence[int]],
    expected: Sequence[Sequence[float]],
    *,
    tolerance: float,
    deadline: float = 60.0,
    version: int | None = None,
) -> ParityReport:
    """Score ``rows`` (token ids) in the engine and compare with ``expected``, the trainer's own log-probs.

    ``expected[i]`` has len(rows[i]) - 1 values: the log-prob of each token given those before it, at temperature 1.
    Raises ParityError when the largest difference exceeds ``tolerance`` or is not a number; ValueError on lengths.
    """
    for row, values in zip(rows, expected, strict=True):
        if len(values) != len(row) - 1:
            raise ValueError(f"a row of {len(row)} tokens needs {len(row) - 1} log-probs, not {len(values)}")
    scored = await asyncio.gather(*(engine.score(row, deadline=deadline) for row in rows))
    found = [
        (abs(theirs - ours), index, position, theirs, ours)
        for index, (engine_row, trainer_row) in enumerate(zip(scored, expected, strict=True))
        for position, (theirs, ours) in enumerate(zip(engine_row, trainer_row, strict=True), start=1)
    ]
    if not found:
        raise ValueError("parity needs at least one token to compare")
    # A NaN must be the worst of all, whatever it is compared with.
    worst = max(found, key=lambda item: float("inf") if item[0] != item[0] else item[0])
    report = ParityReport(max=worst[0], mean=sum(item[0] for item in found) / len(found), tokens=len(found))
    if not report.max <= tolerance:
        difference, index, position, theirs, ours = worst
        label = "" if version is None else f" of version {version}"
        raise ParityError(
            f"weights{label} differ between engine and trainer: log-prob {theirs:.6f} in the engine, {ours:.6f} in "
            f"the trainer at row {index}, token {position} (difference {difference:.2e}, mean {report.mean:.2e} over "
            f"{report.tokens} tokens, tolerance {tolerance:g}). Episodes sampled now would train another model than "
            "the one that sampled them. Usual causes: a tied lm_head that kept its old weights, a stale prefix cache, "
            "an engine dtype below the trainer's, a weight name the engine does not know."
        )
    return report
