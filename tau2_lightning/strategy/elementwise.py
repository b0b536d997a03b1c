"""RMS norms and rotary embeddings of Qwen-like decoder layers, with gradients written by hand.

transformers spells them in small operations, each of which autograd remembers, undoes and passes over memory for: a
fifth of a small model's step. The formulas, and where half precision rounds, are transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _RMSNorm(torch.autograd.Function):
    """y = w n with n = x r, r = (mean(x^2) + eps)^(-1/2) over the last dimension (Zhang and Sennrich 2019, eq. 4).

    With g = dL/dy: dL/dw = sum over positions of g n, and dL/dx = r (g w - n mean(g w n)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_()[..., None]
        ctx.save_for_backward(x, weight, scale)
        normed = (wide * scale).to(x.dtype)
        # In place where the product has the same type, which an autocast norm of float32 weights has not.
        return normed.mul_(weight) if weight.dtype == x.dtype else weight * normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        normed = x.float() * scale
        product = grad.float() * normed
        rows = product.flatten(0, -2)
        grad_weight = rows.sum(0).to(weight.dtype) if needs_weight else None
        if not needs_x:
            return None, grad_weight, None
        wide_weight = weight.float()
        shrink = torch.mv(rows, wide_weight).view(scale.shape).div_(-x.shape[-1])
        grad_x = torch.mul(grad.float(), wide_weight, out=product).addcmul_(normed, shrink).mul_(scale)
        return grad_x.to(x.dtype), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` [..., D] of any float type over its root mean square, times ``weight`` [D]; computed in float32."""
    if torch.compiler.is_compiling():  # a compiler fuses the formula by itself
        wide = x.to(torch.float32)
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    normed: Tensor = _RMSNorm.apply(x, weight, eps)
    return normed


class RMSNorm(nn.Module):
    """Stands where a norm of transformers' stood, with its very parameter."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight: nn.Parameter = norm.weight
        self.eps: float = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class _Rotation(torch.autograd.Function):
    """Turns the pairs (x_i, x_{i + D/2}) by angles; backward turns the gradient back. cos and sin are constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1.0), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, eq. 34, halves as transformers pairs them).

    ``x`` [B, heads, T, D]; ``cos`` and ``sin`` [B or 1, T, D], of ``x``'s type or one that promotes it, whose halves
    repeat the angles.
    """
    cos, sin = cos[:, None], sin[:, None]
    if torch.compiler.is_compiling():
        low, high = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-high, low), dim=-1) * sin
    turned: Tensor = _Rotation.apply(x, cos, sin)
    return turned


def use_own_norms(model: nn.Module) -> None:
    """Put ``RMSNorm`` in the place of all norms of a model of `model.PLAIN_HEAD`'s families; names stay."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "variance_epsilon"):
                setattr(module, name, RMSNorm(child))
