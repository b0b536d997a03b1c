"""What the soak and the load call flat, and their account of episodes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import soak
from flat import growth

from tau2_lightning.run.compose import load_config

MIB = 2.0**20


def readings(per_step: float, *, restarts: bool = False) -> list[float]:
    """A thousand MiB with noise, and ``per_step`` MiB more a step; memory falls for 20 steps after a restart."""
    random = np.random.default_rng(0)
    values = 1000.0 + per_step * np.arange(500) + random.normal(0.0, 3.0, 500)
    values[:50] -= np.linspace(400.0, 0.0, 50)  # caches fill
    if restarts:
        for at in range(30, 500, 60):
            values[at : at + 20] -= 300.0
    return [float(value) * MIB for value in values]


@pytest.mark.parametrize("restarts", [False, True])
def test_what_is_flat_is_found_flat_and_a_leak_is_found(restarts: bool) -> None:
    steps = list(range(500))
    flat = growth(steps, readings(0.0, restarts=restarts), 500)
    assert abs(flat.estimate) < 5 * MIB and flat.low < flat.estimate < flat.high
    assert abs(flat.fraction) < 0.01 and flat.median == pytest.approx(1000 * MIB, rel=0.02)
    leak = growth(steps, readings(0.2, restarts=restarts), 500)
    assert leak.low > 0.08 * 1000 * MIB and leak.fraction > soak.MOST_FRACTION
    assert leak.line("memory", "500 steps", in_bytes=True).startswith("memory: 10")


def test_too_few_readings_are_no_slope() -> None:
    with pytest.raises(ValueError, match="5 readings are too few"):
        growth(range(5), [1.0] * 5, 500)


def test_the_account_is_exact_or_not_one() -> None:
    counts = {"collected": 100, "trained": 60, "filtered": 20, "excluded": 8, "in_flight": 8, "stale": 1}
    assert soak.accounted(counts) == 1.0
    assert soak.accounted(counts | {"trained": 59}) > 1.0


def test_every_limited_quantity_has_an_aim() -> None:
    lines = [
        {"batch": float(step)} | dict.fromkeys((*soak.BYTES, *soak.NUMBERS, "record"), 7.0 + 0.1 * step)
        for step in range(500)
    ]
    ratios, aims = soak.judged(lines)
    assert ratios.keys() == aims.keys() and len(ratios) == 7
    assert ratios["threads grows"] == pytest.approx(50.0) and aims["threads grows"] == "<= 2"


@pytest.mark.parametrize("full", [False, True])
def test_the_run_is_one_that_would_start(full: bool, tmp_path: Path) -> None:
    config = load_config(soak.words(tmp_path, 1, full=full))
    assert config.rollout.max_head_offpolicyness == 1 and (config.trainer.max_time is None) == full
