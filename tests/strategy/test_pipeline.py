"""How ragged micro-batches become schedule calls, and which schedules are taken."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.errors import ConfigError
from tau2_lightning.strategy.model import layers_of_stage
from tau2_lightning.strategy.pipeline import check_schedule


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
