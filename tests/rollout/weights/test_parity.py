"""The parity guard with an engine without servers; `test_pool.py` tests it with several servers."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from tau2_lightning.config.rollout import WeightSyncConfig
from tau2_lightning.errors import ParityError
from tau2_lightning.rollout.engine.generation import Engine
from tau2_lightning.rollout.weights.guard_rows import PROMPT_TOKENS, SAMPLED_TOKENS, GuardRows
from tau2_lightning.rollout.weights.parity import Tolerance, check_parity, default_tolerance
from tau2_lightning.trajectory import Trajectory, Turn
from tests.sections import section


class Scores:
    """An engine that scores every row the same way."""

    def __init__(self, values: list[float]) -> None:
        self.values, self.deadlines = values, list[float]()

    async def score(self, token_ids: list[int], *, deadline: float) -> list[float]:
        self.deadlines.append(deadline)
        return self.values


def engine(values: list[float]) -> Engine:
    return cast("Engine", Scores(values))


def test_the_tolerance_follows_from_what_computes():
    assert default_tolerance("float32", "fp32", on_cpu=True) == Tolerance(1e-4, 1e-3, 1e-2)
    assert default_tolerance("float32", "fp32", on_cpu=False) == Tolerance(1e-2, 0.1, 1.0)
    for dtype, precision in (("bfloat16", "bf16"), ("bfloat16", "fp32"), ("float32", "bf16")):
        assert default_tolerance(dtype, precision, on_cpu=True) == Tolerance(0.1, 1.0, 10.0)


async def test_parity_reports_and_raises():
    rows, served = [[1, 2, 3]], engine([-1.0, -2.0])
    report = await check_parity(served, rows, [[-1.0, -2.001]], tolerance=Tolerance.largest(0.01))
    assert report.max == report.p99 == pytest.approx(0.001)
    assert report.mean == pytest.approx(0.0005) and report.tokens == 2
    with pytest.raises(ParityError, match=r"version 4.*token 2: log-prob -2\.000000 in the engine, -2\.500000 in the"):
        await check_parity(served, rows, [[-1.0, -2.5]], tolerance=Tolerance.largest(0.01), version=4)
    for bad in (float("nan"), float("-inf")):
        with pytest.raises(ParityError):
            await check_parity(served, rows, [[bad, -2.0]], tolerance=Tolerance.largest(0.01))
    with pytest.raises(ValueError, match="needs 2 log-probs"):
        await check_parity(served, rows, [[-1.0]], tolerance=Tolerance.largest(0.01))


async def test_a_comparison_waits_long_enough_for_a_real_prompt_on_a_busy_cpu():
    """Two rows of 8,000 tokens, at 100 tokens/s: a tenth of what two quiet cores prefill with SmolLM2."""
    served = Scores([-1.0, -2.0])
    await check_parity(cast("Engine", served), [[1, 2, 3]], [[-1.0, -2.0]], tolerance=Tolerance.largest(0.01))
    assert served.deadlines == [pytest.approx(300)] and 2 * 8000 / 100 < 300
    assert section(WeightSyncConfig, "rollout.weight_sync").timeout >= 300  # what a run passes on


async def test_only_chosen_tokens_are_compared():
    served = engine([-1.0, -2.0, -3.0])
    report = await check_parity(
        served, [[1, 2, 3, 4]], [[-1.0, -3.0]], positions=[[1, 3]], tolerance=Tolerance.largest(1e-6)
    )
    assert report.tokens == 2 and report.max == 0
    with pytest.raises(ParityError, match="token 2"):
        await check_parity(served, [[1, 2, 3, 4]], [[0.0]], positions=[[2]], tolerance=Tolerance.largest(1e-6))


async def test_rounding_passes_and_a_fault_does_not():
    """Rounding in bfloat16 passes (mean .04, largest .32, as measured with SmolLM2), larger errors do not."""
    rng = np.random.default_rng(1)
    values = -rng.exponential(1.0, 400)
    rounding = np.clip(rng.normal(0, 0.05, 400), -0.32, 0.32)
    row, bfloat16 = [list(range(401))], default_tolerance("bfloat16", "bf16", on_cpu=True)
    report = await check_parity(engine(list(values)), row, [list(values + rounding)], tolerance=bfloat16)
    assert 0.03 < report.mean < 0.05 and report.max < 0.33
    with pytest.raises(ParityError, match="mean 1"):
        await check_parity(engine(list(values)), row, [list(values + rounding * 4)], tolerance=bfloat16)
    local = rounding.copy()
    local[::50] = 1.5  # an error in 2 % of the tokens, too few to show in the mean
    with pytest.raises(ParityError, match="p99 1.50"):
        await check_parity(engine(list(values)), row, [list(values + local)], tolerance=bfloat16)


def row(prompt: int, *lengths: int, gap: int = 5) -> Trajectory:
    """A row of a prompt and sampled turns of these lengths, ``gap`` tokens apart."""
    turns, at = [], prompt
    for length in lengths:
        turns.append(Turn(at, at + length))
        at += length + gap
    total = max(at, prompt)
    versions = np.full(total, -1, np.int32)
    for turn in turns:
        versions[turn.start : turn.end] = 0
    return Trajectory.of(list(range(total)), np.zeros(total, np.float32), versions, tuple(turns))


def test_sampled_tokens_are_compared_however_long_the_prompt_is():
    guard = GuardRows.chosen([row(9904, 20, 30)], 2)
    assert guard is not None
    (tokens,), (positions,) = guard.rows, guard.positions
    assert positions[:PROMPT_TOKENS] == list(range(9904 - PROMPT_TOKENS, 9904))
    assert positions[PROMPT_TOKENS:] == [*range(9904, 9924), *range(9929, 9959)]
    assert len(tokens) == 9959, "a row must end with the last compared token"


def test_long_rows_are_cut_and_rows_without_trained_tokens_left_out():
    guard = GuardRows.chosen([row(3), row(10, 2000)], 4)
    assert guard is not None and len(guard.rows) == 1
    assert len(guard.positions[0]) == 9 + SAMPLED_TOKENS and guard.rows[0][-1] == 10 + SAMPLED_TOKENS - 1
    assert GuardRows.chosen([row(3)], 4) is None


def test_before_rollouts_the_end_of_a_prompt_is_compared():
    guard = GuardRows.prompt(list(range(500)))
    assert guard.positions == [list(range(500 - PROMPT_TOKENS, 500))] and guard.rows == [list(range(500))]
    assert GuardRows.prompt([7, 8]).positions == [[1]], "the first token has no log-prob to compare"
