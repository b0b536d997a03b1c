"""The parity guard on an engine without servers; on a pool of several it is tested with the pool."""

from __future__ import annotations

from typing import cast

import pytest

from tau2_lightning.errors import ParityError
from tau2_lightning.rollout.engine.generation import Engine
from tau2_lightning.rollout.weights.parity import check_parity, default_tolerance


class Scores:
    """An engine that scores every row the same way."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    async def score(self, token_ids: list[int], *, deadline: float) -> list[float]:
        return self.values


def test_the_tolerance_follows_from_what_computes():
    assert default_tolerance("float32", "fp32", on_cpu=True) == 1e-3
    assert default_tolerance("float32", "fp32", on_cpu=False) == 0.1
    for dtype, precision in (("bfloat16", "bf16"), ("bfloat16", "fp32"), ("float32", "bf16")):
        assert default_tolerance(dtype, precision, on_cpu=True) == 0.25


async def test_parity_reports_and_raises():
    rows, engine = [[1, 2, 3]], cast("Engine", Scores([-1.0, -2.0]))
    report = await check_parity(engine, rows, [[-1.0, -2.001]], tolerance=0.01)
    assert report.max == pytest.approx(0.001) and report.mean == pytest.approx(0.0005) and report.tokens == 2
    with pytest.raises(ParityError, match=r"version 4.*-2\.000000 in the engine, -2\.500000 in the trainer.*token 2"):
        await check_parity(engine, rows, [[-1.0, -2.5]], tolerance=0.01, version=4)
    for bad in (float("nan"), float("-inf")):
        with pytest.raises(ParityError):
            await check_parity(engine, rows, [[bad, -2.0]], tolerance=0.01)
    with pytest.raises(ValueError, match="needs 2 log-probs"):
        await check_parity(engine, rows, [[-1.0]], tolerance=0.01)
