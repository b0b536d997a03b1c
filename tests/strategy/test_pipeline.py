"""How ragged micro-batches become schedule calls, and which schedules are taken."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.errors import ConfigError
from tau2_lightning.strategy.model import layers_of_stage
from tau2_lightning.strategy.pipeline import Call, check_schedule, plan_calls

shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 300)), max_size=20)


@settings(deadline=None)
@given(shapes, st.integers(1, 4), st.sampled_from([1, 16, 64]))
def test_every_microbatch_runs_once_and_fits(each: list[tuple[int, int]], ranks: int, bucket: int) -> None:
    calls = plan_calls(each, ranks, bucket)
    assert sorted(slot for call in calls for slot in call.slots if slot is not None) == list(range(len(each)))
    for call in calls:
        assert len(call.slots) % ranks == 0 and call.shape[1] % bucket == 0
        assert all(s is None or (each[s][0] <= call.shape[0] and each[s][1] <= call.shape[1]) for s in call.slots)


def test_short_rows_are_not_padded_to_the_longest() -> None:
    assert plan_calls([(1, 30), (1, 500), (1, 20), (1, 490)], 2, 64) == [
        Call((1, 512), (1, 3)),
        Call((1, 64), (0, 2)),
    ]


def test_an_odd_one_out_is_filled_up() -> None:
    assert plan_calls([(2, 10), (1, 12), (1, 9)], 2, 16) == [Call((2, 16), (1, 0, 2, None))]


@pytest.mark.parametrize("name", ["ZBVZeroBubble", "DualPipeV"])
def test_v_schedules_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot run forward only"):
        check_schedule(name)


def test_unknown_schedule() -> None:
    with pytest.raises(ConfigError, match="One of GPipe, 1F1B"):
        check_schedule("2F2B")


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 8))
def test_layers_are_shared_out_in_order(layers: int, stages: int) -> None:
    parts = [layers_of_stage(layers, stages, stage) for stage in range(stages)]
    assert [layer for part in parts for layer in part] == list(range(layers))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
