"""The learning-rate factor: a rise, a fall, and what is left at the end."""

import itertools

import pytest

from tau2_lightning.strategy.learning_rate import lr_factor


def test_rises_falls_and_stays():
    factors = [lr_factor(step, total=40, warmup=5, final=0.1) for step in range(45)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1.0
    assert all(a > b for a, b in itertools.pairwise(factors[5:40]))
    assert factors[39:] == pytest.approx([0.1] * 6)


def test_a_final_fraction_of_one_is_constant():
    assert {lr_factor(step, total=10, warmup=0, final=1.0) for step in range(20)} == {1.0}


def test_training_without_an_end_never_falls():
    assert lr_factor(10_000, total=float("inf"), warmup=5, final=0.1) == 1.0
