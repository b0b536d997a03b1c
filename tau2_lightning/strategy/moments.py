"""The two moments of AdamW in fewer bytes: bfloat16, or 8 bits with one scale for each block.

A moment is one or two tensors beside its parameter. They are split over ranks as the parameter is, so a checkpoint of
one layout is read by any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

MomentFormat = Literal["float32", "bfloat16", "8bit"]
FORMATS: dict[str, MomentFormat] = {"adam": "float32", "adam_bf16": "bfloat16", "adam_8bit": "8bit"}

#: Values that share a scale: a part of a row of the parameter.
BLOCK = 256
#: Smaller parameters (norms, biases) and rows that make short blocks stay in float32, as in bitsandbytes and torchao.
SMALLEST, SHORTEST_BLOCK = 4096, 32


@dataclass(frozen=True)
class Moment:
    """How one moment is kept: the suffixes and dtypes of its tensors. ``block`` is 0 where there is no scale."""

    dtype: torch.dtype
    block: int = 0

    @classmethod
    def of(cls, parameter: Tensor, kept: MomentFormat) -> Moment:
        """The way in which a moment of ``parameter`` is kept: the same on every rank that holds a part of it."""
        if kept == "bfloat16":
            return cls(torch.bfloat16)
        block = gcd(_local(parameter).shape[-1], BLOCK) if parameter.ndim > 1 else 0
        if kept == "8bit" and block >= SHORTEST_BLOCK and parameter.numel() >= SMALLEST:
            return cls(torch.uint8, block)
        return cls(torch.float32)

    def zeros(self, parameter: Tensor, name: str, device: torch.device) -> dict[str, Tensor]:
        """The tensors of a moment that is zero, by name, on ``device``: ``name``, and ``name_scale`` of 8 bits."""
        made = {name: _beside(parameter, self.dtype, device, 1)}
        if self.block:
            made[f"{name}_scale"] = _beside(parameter, torch.float32, device, self.block)
        return made


def load(values: Tensor, scales: Tensor | None, *, signed: bool, device: torch.device) -> Tensor:
    """Rows of a moment [r, n] as float32 on ``device``; a moment in float32 that is there already is not copied."""
    values = values.to(device, non_blocking=True)
    if scales is None:
        return values.float()
    blocks = _codebook(signed, device)[values.int()].view(*scales.shape, -1)
    return (blocks * scales.to(device, non_blocking=True)[..., None]).view(values.shape)


def store(moment: Tensor, values: Tensor, scales: Tensor | None, *, signed: bool, seed: int) -> None:
    """Write ``moment`` [r, n] float32 to the rows ``values`` (and ``scales``), wherever they are.

    bfloat16 is rounded up or down at random, such that the expectation is exact (``seed`` decides): a running mean
    moves by a few per cent of its value, which rounding to the nearest would swallow in part.
    """
    if scales is not None:
        blocks = moment.view(*scales.shape, -1)
        scale = blocks.abs().amax(-1)
        codes = torch.bucketize((blocks / scale.clamp(min=1e-38)[..., None]).view(moment.shape), _cuts(signed, moment))
        if not signed:
            # A second moment that became 0 would make the next update as large as 1 / eps allows.
            codes = torch.where(moment > 0, codes.clamp(min=1), codes)
        scales.copy_(scale, non_blocking=True)
        values.copy_(codes.to(torch.uint8), non_blocking=True)
    elif values.dtype == torch.bfloat16:
        values.copy_(stochastically_rounded(moment, seed), non_blocking=True)
    elif values.data_ptr() != moment.data_ptr():
        values.copy_(moment, non_blocking=True)


def stochastically_rounded(x: Tensor, seed: int) -> Tensor:
    """float32 ``x`` as bfloat16: one of the two neighbours, with the probability that keeps the mean. Finite values."""
    generator = torch.Generator(x.device).manual_seed(seed)
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=x.device, generator=generator)
    return ((bits + noise) & -65536).view(torch.float32).to(torch.bfloat16)


def _beside(parameter: Tensor, dtype: torch.dtype, device: torch.device, block: int) -> Tensor:
    """Zeros on ``device``, one for every ``block`` values of a row, split as ``parameter`` is."""

    def shape(of: Tensor) -> tuple[int, ...]:
        return (*of.shape[:-1], of.shape[-1] // block) if of.ndim else ()

    local = _local(parameter)
    pinned = device.type == "cpu" and torch.cuda.is_available()
    zeros = torch.zeros(shape(local), dtype=dtype, device=device, pin_memory=pinned)
    if not isinstance(parameter, DTensor):
        return zeros
    # Not DTensor.from_local: it would move memory of the host to the mesh's device.
    whole = torch.empty(shape(parameter), dtype=dtype, device="meta")
    spec = DTensorSpec(
        parameter.device_mesh, parameter.placements, tensor_meta=TensorMeta(whole.shape, whole.stride(), dtype)
    )
    make: Any = DTensor  # its constructor is untyped
    made: Tensor = make(zeros, spec, requires_grad=False)
    return made


def _local(tensor: Tensor) -> Tensor:
    found: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return found


@cache
def _codebook(signed: bool, device: torch.device) -> Tensor:
    """The 256 values of a code, ascending: the dynamic data type of 8-bit optimizers (arXiv:2110.02861, section 2.1).

    0, 1, and in each of seven decades below 1 the middles of equal intervals, twice as many as in the decade below: one
    for each sign in the smallest decade, or two where values have no sign.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        count = 2 ** (decade if signed else decade + 1)
        middles = [10.0 ** (decade - 6) * (0.1 + 0.9 * (k + 0.5) / count) for k in range(count)]
        values += middles + ([-value for value in middles] if signed else [])
    return torch.tensor(sorted(values), device=device)


def _cuts(signed: bool, beside: Tensor) -> Tensor:
    """The 255 values at which the nearest code changes."""
    codes = _codebook(signed, beside.device)
    return (codes[:-1] + codes[1:]) / 2
