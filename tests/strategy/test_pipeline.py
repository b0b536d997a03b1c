"""How ragged micro-batches become schedule calls, and which schedules are accepted."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.errors import ConfigError
from tau2_lightning.strategy.balance import TRAINED, head_load, layers_of_stages
from tau2_lightning.strategy.families import qwen3, qwen3_moe
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
    parts = layers_of_stages(layers, stages)
    assert [layer for part in parts for layer in part] == list(range(layers))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9), st.integers(1, 5), st.floats(0.0, 12.0))
def test_no_other_cut_has_a_lighter_slowest_stage(more: int, stages: int, head: float) -> None:
    layers = stages + more
    parts = layers_of_stages(layers, stages, head)
    assert [layer for part in parts for layer in part] == list(range(layers))
    assert all(parts)

    def slowest(sizes: list[int]) -> float:
        return max([*sizes[:-1], sizes[-1] + head])

    every = [
        slowest([b - a for a, b in zip((0, *cuts), (*cuts, layers), strict=True)])
        for cuts in combinations(range(1, layers), stages - 1)
    ]
    assert slowest([len(part) for part in parts]) == pytest.approx(min(every))


def test_the_head_of_a_small_model_with_a_large_vocabulary_is_worth_layers() -> None:
    """Qwen3-0.6B: 15.7 million weights per layer, 155.6 million in the head."""
    config = SimpleNamespace(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128,
    )  # fmt: skip
    load = head_load(config, qwen3.FAMILY)
    assert load == pytest.approx(TRAINED * 151936 * 1024 / (1024 * 128 * (16 + 2 * 8 + 16) + 3 * 1024 * 3072))
    assert list(map(len, layers_of_stages(28, 4, load))) == [8, 8, 7, 5]


def test_of_a_mixture_only_the_experts_of_a_token_count() -> None:
    config = SimpleNamespace(
        vocab_size=1000, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, intermediate_size=10**9,
        num_experts_per_tok=2, moe_intermediate_size=100,
    )  # fmt: skip
    assert head_load(config, qwen3_moe.FAMILY) == pytest.approx(TRAINED * 1000 / (2 * 16 * 8 + 3 * 2 * 100))
