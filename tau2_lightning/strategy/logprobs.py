"""Log-probabilities and entropy from logits whose vocabulary may be split over a tensor-parallel group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._triton import has_triton

from .autograd import apply

# Rows are worked on in slices of about this many logits: float32 temporaries stay small beside the logits on a GPU, and
# in the cache of a CPU core, where several passes over them cost little more than one.
_SLICE = {"cuda": 1 << 25, "cpu": 1 << 17}


class _TokenLogprobs(torch.autograd.Function):
    """log p(label) and entropy of softmax(logits / temperature), float32, with hand-written gradients.

    With z = logits / temperature, p = softmax(z): d log p_y / dz_j = [j = y] - p_j, and
    dH / dz_j = -p_j (log p_j + H). Under vocabulary parallelism each rank holds a slice of z: the row maximum, then,
    relative to it, the sum of exponentials, the expectation of z and the label's logit are all-reduced in forward;
    backward is local, because every rank of the group computes the same loss. On a GPU Triton's kernels do the work.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, temperature: float, vocab_start: int, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor]:
        vocab = logits.shape[-1]
        local = labels - vocab_start
        owned = (local >= 0) & (local < vocab)
        local = local.clamp(0, max(vocab - 1, 0))
        fused = _fuses(logits)
        if fused:
            from .logprob_kernels import row_sums

            own, exp, weighted = row_sums(logits, temperature)
        else:
            own = logits.amax(-1).float() / temperature
        high = own
        if group is not None:
            high = own.clone()
            dist.all_reduce(high, dist.ReduceOp.MAX, group=group)
        if fused:
            shift = own - high
            exp, weighted = shift.exp() * exp, shift.exp() * (weighted + shift * exp)
        else:
            exp, weighted = _row_sums(logits, temperature, high)
        label = (logits.gather(-1, local[:, None])[:, 0].float() / temperature - high) * owned
        sums = torch.stack([exp, weighted, label])
        if group is not None:
            dist.all_reduce(sums, group=group)
        log_sum = sums[0].log()
        log_z = high + log_sum
        entropy = log_sum - sums[1] / sums[0]
        if not ctx.needs_input_grad[0]:
            return sums[2] - log_sum, entropy
        ctx.save_for_backward(logits, local, owned, log_z, entropy)
        ctx.temperature, ctx.fused = temperature, fused
        ctx.set_materialize_grads(False)
        return sums[2] - log_sum, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, local, owned, log_z, entropy = ctx.saved_tensors
        if grad_logprobs is None and grad_entropy is None:
            return None, None, None, None, None
        if ctx.fused:
            from .logprob_kernels import gradient

            columns = torch.where(owned, local, -1)
            given = grad_logprobs, grad_entropy
            return gradient(logits, columns, log_z, entropy, *given, ctx.temperature), None, None, None, None
        grad = torch.empty_like(logits)
        in_place = grad.dtype == torch.float32
        for rows in _slices(logits):
            # All in place, and float32 gradients in the result itself: copying slices took a twentieth of a small
            # model's step.
            logp = _shifted(logits[rows], ctx.temperature, log_z[rows, None], grad[rows] if in_place else None)
            if grad_entropy is None:
                total = logp.exp_()
                assert grad_logprobs is not None
                total.mul_(-grad_logprobs[rows, None])
            else:
                p = logp.exp()
                total = logp.add_(entropy[rows, None]).mul_(p).mul_(-grad_entropy[rows, None])
                if grad_logprobs is not None:
                    total.sub_(p.mul_(grad_logprobs[rows, None]))
            if grad_logprobs is not None:
                total.scatter_add_(-1, local[rows, None], (grad_logprobs[rows] * owned[rows])[:, None])
            if ctx.temperature != 1.0:
                total.div_(ctx.temperature)
            if not in_place:
                grad[rows] = total
        return grad, None, None, None, None


def _row_sums(logits: Tensor, temperature: float, high: Tensor) -> tuple[Tensor, Tensor]:
    """For every row the sums of e^(z - high) and of (z - high) e^(z - high), by torch's operations."""
    exp_sum, weighted = torch.empty_like(high), torch.empty_like(high)
    for rows in _slices(logits):
        # Relative to the maximum: entropy is a difference, and large logits would cost its precision.
        z = _shifted(logits[rows], temperature, high[rows, None])
        exp = z.exp()
        exp_sum[rows] = exp.sum(-1)
        weighted[rows] = exp.mul_(z).sum(-1)
    return exp_sum, weighted


def _fuses(logits: Tensor) -> bool:
    return logits.is_cuda and logits.stride(-1) == 1 and has_triton()


def _shifted(logits: Tensor, temperature: float, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """logits / temperature - shift, as a new float32 tensor or in ``out``, which must be float32."""
    if temperature == 1.0:
        return torch.sub(logits, shift, out=out)  # float32: shift is
    return torch.div(logits.float(), temperature, out=out).sub_(shift)


def _slices(logits: Tensor) -> list[slice]:
    step = max(1, _SLICE.get(logits.device.type, 1 << 25) // max(1, logits.shape[-1]))
    return [slice(start, start + step) for start in range(0, logits.shape[0], step)]


def token_logprobs(
    logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    *,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of ``labels`` [N] int64 and entropy, both [N] float32 in nats, of softmax(logits / temperature).

    ``logits`` [N, V] of any float type; with ``group``, this rank's columns ``vocab_start``... of a vocabulary split
    over it (every rank gets the full result). Both results are differentiable.
    """
    logprobs, entropy = apply(_TokenLogprobs, logits, labels, temperature, vocab_start, group)
    return logprobs, entropy


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Put ``values`` [N] at the True positions of ``mask`` [B, T]; zeros elsewhere."""
    out = values.new_zeros(mask.shape)
    return out.masked_scatter(mask, values)
