"""Seconds are charged to the innermost phase, once."""

import time

import pytest

from tau2_lightning.telemetry.phases import PhaseClock


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    made = PhaseClock()

    def advance(seconds):
        now[0] += seconds

    return made, advance


def test_nested_time_counts_once(clock):
    made, advance = clock
    advance(5)  # before any phase, so it is not counted
    with made.phase("outer"):
        advance(1)
        with made.phase("inner"):
            assert made.current == "inner"
            advance(10)
        advance(2)
    advance(7)
    assert dict(made.seconds) == {"outer": 3, "inner": 10}
    assert made.current == "idle"


def test_phases_add_up_and_survive_exceptions(clock):
    made, advance = clock
    for _ in range(2):
        with pytest.raises(KeyError), made.phase("x"):
            advance(2)
            raise KeyError
    assert made.seconds["x"] == 4
    assert made.current == "idle"
