"""RMS norms and rotary embeddings with gradients written by hand, for small models on a CPU.

transformers computes both in small operations. Autograd stores, differentiates and reads memory for each of them, which
takes a fifth of a tiny model's step. Formulas, and where half precision rounds, are transformers' own. They are off
unless `Options.handwritten_elementwise` enables them on a CPU: the saving is negligible beside a larger model's matrix
products, a compiler fuses transformers' formulas by itself, and on a GPU they have not been measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .attention import attend
from .autograd import apply
from .modules import find
from .tensor_parallel import SplitNorm


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
        # In place if the product has the same type, which is not so for an autocast norm of float32 weights.
        out: Tensor = normed.mul_(weight) if weight.dtype == x.dtype else weight * normed
        return out

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
    normed: Tensor = apply(_RMSNorm, x, weight, eps)
    return normed


class RMSNorm(nn.Module):
    """Replaces one of transformers' RMS norms, with the same parameter object."""

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
    turned: Tensor = apply(_Rotation, x, cos[:, None], sin[:, None])
    return turned


def use_handwritten(model: nn.Module, layers: Iterable[nn.Module], attention: str) -> None:
    """Replace the norms of ``model``, and the rotations in the ``attention`` of its ``layers``, by the handwritten
    ones.

    Parameter names stay. ``model`` is of a known `Family` and its attention is prepared by `attend_within_rows`.
    """
    for layer in layers:
        module = find(layer, attention)
        module.forward = MethodType(_attention_forward, module)
    for holder in list(model.modules()):
        for name, child in list(holder.named_children()):
            if isinstance(child, SplitNorm):
                child.formula = rms_norm
            elif hasattr(child, "variance_epsilon"):
                setattr(holder, name, RMSNorm(child))


def _attention_forward(
    module: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The forward of transformers' attention, except for how queries and keys are rotated. Training has no cache."""
    assert past_key_values is None
    shape = hidden_states.shape[:-1]
    heads = (*shape, -1, module.head_dim)
    query, key, value = (part(hidden_states).view(heads) for part in (module.q_proj, module.k_proj, module.v_proj))
    if hasattr(module, "q_norm"):
        query, key = module.q_norm(query), module.k_norm(key)
    cos, sin = position_embeddings
    query, key = (rotate(x.transpose(1, 2), cos, sin) for x in (query, key))
    window = getattr(module, "sliding_window", getattr(module.config, "sliding_window", None))
    options = {"segments": kwargs.get("segments"), "scaling": module.scaling, "sliding_window": window}
    out, _ = attend(module, query, key, value.transpose(1, 2), attention_mask, **options)
    return module.o_proj(out.reshape(*shape, -1)), None
