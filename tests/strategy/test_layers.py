"""Activation checkpointing and compiled layers: the same gradients, more or fewer operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.flop_counter import FlopCounterMode

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.errors import ConfigError
from tau2_lightning.strategy import layers
from tau2_lightning.strategy.layers import check_compiler
from tests.strategy.distributed import fork
from tests.strategy.tiny import clipped_loss, connected, full_gradients, share, tiny_batches, tiny_model


def work(text: str, options: dict[str, Any]) -> tuple[int, dict[str, torch.Tensor]]:
    """Floating-point operations of matrix products and attention, and full gradients."""
    compute = connected(text, **options)
    compute.parallelize(tiny_model(tied=True)).train()
    counter = FlopCounterMode(display=False)
    with counter:
        compute.forward_backward(share(tiny_batches(), compute), clipped_loss)
    return counter.get_total_flops(), full_gradients(compute)


def same(left: list[Any], right: list[Any], tolerance: float = 1e-7) -> None:
    for (_, want), (_, got) in zip(left, right, strict=True):
        assert want.keys() == got.keys()
        assert all(float((got[name] - value).abs().max()) <= tolerance for name, value in want.items())


def test_selective_computes_less_again_than_full() -> None:
    plain, some, full = (
        fork(1, work, "d1", {"activation_checkpointing": mode}) for mode in ("none", "selective", "full")
    )
    same(plain, some)
    same(plain, full)
    assert plain[0][0] < some[0][0] < full[0][0]
    assert some[0][0] - plain[0][0] < 0.7 * (full[0][0] - plain[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("text", ["d2", "p2", "t2", "d2t2", "c2"])
def test_selective_under_layouts(text: str) -> None:
    world = ParallelSpec.parse(text).world
    plain, some = (fork(world, work, text, {"activation_checkpointing": mode}) for mode in ("none", "selective"))
    same(plain, some)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="One of none, selective, full"):
        connected("d1", activation_checkpointing="half").parallelize(tiny_model())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "mode"),
    [("d1", "selective"), ("d2", "none"), ("p2", "full"), ("t2", "none")],
)
def test_compiled_layers_give_the_same_gradients(text: str, mode: str) -> None:
    world = ParallelSpec.parse(text).world
    plain = fork(world, compiled, text, mode, False)
    fast = fork(world, compiled, text, mode, True, timeout=400)
    same(plain, fast, 1e-6)
    assert all(frames > 0 for frames, _ in fast) and all(frames == 0 for frames, _ in plain)


def compiled(text: str, mode: str, wanted: bool) -> tuple[int, dict[str, torch.Tensor]]:
    """Number of frames that dynamo compiled, and full gradients."""
    from torch._dynamo.utils import counters

    counters.clear()
    compute = connected(text, compile_blocks=wanted, activation_checkpointing=mode)
    compute.parallelize(tiny_model(tied=True)).train()
    compute.forward_backward(share(tiny_batches(), compute), clipped_loss)
    return sum(counters["frames"].values()), full_gradients(compute)


def test_no_compiler_is_one_clear_error() -> None:
    from torch._inductor import config

    # Its own patch: what pytest's monkeypatch puts back hides the setting from torch afterwards.
    nowhere = config.patch({"cpp.cxx": ("/nowhere/g++",)})
    with nowhere, pytest.raises(ConfigError, match=r"actor.compile=True: there is no C\+\+ compiler. Install g\+\+"):
        check_compiler(torch.device("cpu"))


def test_selective_keeps_attention_of_packed_rows_on_gpus_too() -> None:
    """The results of every attention operator are kept, those of elementwise ones are not."""
    import torch.nn.attention.varlen  # registers the operator

    keep, _ = layers._selective_contexts()
    fresh = keep.policy_fn
    context: Any = type("Context", (), {"is_recompute": False})
    assert fresh(context, torch.ops.torch_attn._varlen_attn.default) == CheckpointPolicy.MUST_SAVE
    assert fresh(context, torch.ops.aten.mul.Tensor) == CheckpointPolicy.PREFER_RECOMPUTE
