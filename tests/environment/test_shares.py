"""Turns by weight: every prefix of the order holds the share of each name, rounded up or down."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tau2_lightning.environment.shares import turns


def first(n: int, **weights: float) -> list[str]:
    return list(itertools.islice(turns(weights), n))


def test_equal_weights_go_round() -> None:
    assert first(6, a=1, b=1, c=1) == ["a", "b", "c"] * 2


def test_a_batch_of_four_holds_one_two_one() -> None:
    order = first(40, telecom=1, retail=2, airline=1)
    for start in range(0, 40, 4):
        assert Counter(order[start : start + 4]) == {"telecom": 1, "retail": 2, "airline": 1}


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_no_beginning_is_a_whole_turn_off(weights: list[float]) -> None:
    named = {str(i): weight for i, weight in enumerate(weights)}
    total, had = sum(map(Fraction, weights)), Counter[str]()
    for n, name in enumerate(itertools.islice(turns(named), 200), start=1):
        had[name] += 1
        assert all(abs(had[one] - Fraction(weight) * n / total) < 1 for one, weight in named.items())


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 1.0, "b": -1.0}])
def test_weights_must_be_positive(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        next(turns(weights))
