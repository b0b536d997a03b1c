"""`logprobs` on a GPU: one pass over the logits forward and one backward, where torch's operations take about ten.

Written in Triton, which torch for CUDA brings along. Formulas are those of ``logprobs._TokenLogprobs``; the running
maximum follows Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), algorithm 3, extended to
the expectation of the logits, which the entropy needs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # logits per step of a program


@triton.jit
def _row_sums(logits, out, rows, stride, vocab, scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    high, total, weighted = -1.0e30, 0.0, 0.0  # finite: 0 times infinity is no number
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z = tl.load(logits + row * stride + at, mask=at < vocab, other=-float("inf")).to(tl.float32) * scale
        top = tl.maximum(high, tl.max(z, 0))
        shifted = z - top
        exp = tl.exp(shifted)
        keep = tl.exp(high - top)
        weighted = keep * (weighted + (high - top) * total) + tl.sum(tl.where(exp > 0.0, shifted * exp, 0.0), 0)
        total = keep * total + tl.sum(exp, 0)
        high = top
    tl.store(out + row, high)
    tl.store(out + rows + row, total)
    tl.store(out + 2 * rows + row, weighted)


@triton.jit
def _gradient(  # type: ignore[no-untyped-def]
    logits, grad, labels, log_z, entropy, of_logprob, of_entropy, stride, vocab, scale, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocab
    z = tl.load(logits + row * stride + at, mask=inside, other=-float("inf")).to(tl.float32) * scale
    logp = z - tl.load(log_z + row)
    p = tl.exp(logp)
    wanted = tl.load(of_logprob + row)
    spread = tl.where(p > 0.0, p * (logp + tl.load(entropy + row)), 0.0)
    total = tl.where(at == tl.load(labels + row), wanted, 0.0) - wanted * p - tl.load(of_entropy + row) * spread
    tl.store(grad + row * vocab + at, total * scale, mask=inside)


def row_sums(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """For every row of ``logits`` [N, V], with z = logits / temperature: max z, sum e^(z - max), and
    sum (z - max) e^(z - max). All [N] float32.
    """
    rows, vocab = logits.shape
    out = torch.empty(3, rows, dtype=torch.float32, device=logits.device)
    if rows:
        _row_sums[(rows,)](logits, out, rows, logits.stride(0), vocab, 1.0 / temperature, BLOCK=_BLOCK, num_warps=8)
    return out[0], out[1], out[2]


def gradient(
    logits: Tensor,
    labels: Tensor,
    log_z: Tensor,
    entropy: Tensor,
    of_logprob: Tensor | None,
    of_entropy: Tensor | None,
    temperature: float,
) -> Tensor:
    """Gradient with respect to ``logits`` [N, V], in their dtype.

    ``labels`` [N] int64 are columns, -1 where another rank has the label's.
    """
    rows, vocab = logits.shape
    grad = torch.empty(rows, vocab, dtype=logits.dtype, device=logits.device)
    none = torch.zeros_like(log_z)
    if rows:
        _gradient[(rows, triton.cdiv(vocab, _BLOCK))](
            logits, grad, labels, log_z, entropy,
            none if of_logprob is None else of_logprob.contiguous(),
            none if of_entropy is None else of_entropy.contiguous(),
            logits.stride(0), vocab, 1.0 / temperature, BLOCK=_BLOCK, num_warps=8,
        )  # fmt: skip
    return grad
