"""The tensors as they are sent: in the engine's 16-bit dtype if it has one, converted once on the trainer's device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Bucket = dict[str, Tensor]

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def wire_dtype(engine_dtype: str) -> torch.dtype | None:
    """The dtype in which matrices are sent to an engine of ``engine_dtype``; None sends them as they are."""
    return _HALF.get(engine_dtype)


def take(buckets: Iterator[list[tuple[str, Tensor]]], dtype: torch.dtype | None, *, on_cpu: bool) -> Bucket | None:
    """The next bucket as contiguous tensors, None after the last one. ``on_cpu`` copies them to the CPU.

    Tensors of 32 or 64 bits with two dimensions or more are rounded to ``dtype`` first, on their own device. The engine
    would round them in the same way, but twice as many bytes would be sent. Vectors and scalars are sent as they are.
    They are less than a thousandth of a model, and engines keep some of them in float32 (a router's correction bias, a
    state's decay).
    """
    bucket = next(buckets, None)
    if bucket is None:
        return None
    taken: Bucket = {}
    for name, tensor in bucket:
        tensor = tensor.detach()
        if dtype is not None and tensor.is_floating_point() and tensor.ndim > 1 and tensor.itemsize > dtype.itemsize:
            tensor = tensor.to(dtype)
        taken[name] = (tensor.to("cpu") if on_cpu else tensor).contiguous()
    return taken
