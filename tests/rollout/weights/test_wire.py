"""Tensors are sent in the engine's dtype: rounded once, on their own device, before they are copied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tau2_lightning.rollout.weights.wire import take, wire_dtype

SPECIAL = torch.tensor([[float("nan"), float("inf"), -float("inf"), -0.0], [1e-40, 3.4e38, 1.00390625, -1.01171875]])


class Copies(TorchFunctionMode):
    """Records the arguments of every ``Tensor.to``, with the dtype that the tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to:
            self.seen.append((args[0].dtype, args[1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("engine", "expected"), [("bfloat16", torch.bfloat16), ("float32", None), ("auto", None)])
def test_the_wire_has_the_engines_dtype(engine: str, expected: torch.dtype | None) -> None:
    assert wire_dtype(engine) is expected


def test_masters_are_rounded_once_on_their_device_before_the_copy() -> None:
    with Copies() as copies:
        bucket = take(iter([[("w", torch.randn(4, 6))]]), torch.bfloat16, on_cpu=True)
    assert bucket is not None and bucket["w"].dtype == torch.bfloat16
    assert copies.seen == [(torch.float32, torch.bfloat16), (torch.bfloat16, "cpu")]


def test_matrices_are_rounded_as_the_engine_would_and_the_rest_stays() -> None:
    tensors = [
        ("matrix", SPECIAL),
        ("norm", torch.randn(5)),
        ("scale", torch.tensor(0.1)),
        ("ids", torch.ones(2, 2).int()),
    ]
    bucket = take(iter([tensors]), torch.bfloat16, on_cpu=False)
    assert bucket is not None
    in_the_engine = torch.empty(2, 4, dtype=torch.bfloat16).copy_(SPECIAL)  # what a loader of vLLM does
    assert torch.equal(bucket["matrix"].view(torch.int16), in_the_engine.view(torch.int16))
    assert bucket["norm"] is not None and bucket["norm"].dtype == torch.float32
    assert bucket["scale"].dtype == torch.float32 and bucket["ids"].dtype == torch.int32


def test_what_has_the_dtype_already_is_not_copied() -> None:
    weight = torch.randn(3, 3).to(torch.bfloat16)
    bucket = take(iter([[("w", weight)]]), torch.bfloat16, on_cpu=False)
    assert bucket is not None and bucket["w"].data_ptr() == weight.data_ptr()
    assert take(iter([]), torch.bfloat16, on_cpu=False) is None
