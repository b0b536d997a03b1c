"""What one token costs in a decoder layer: the bytes that autograd keeps for the backward pass.

They are counted, not estimated: a layer of the model runs on the meta device, without memory, and what it saves for
backward is added up. Layers that cannot run there (experts choose tokens by their values) are computed from sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from .families.family import Family
from .families.registry import family_of
from .modules import find

_TOKENS = 64
_NAME = "tau2_lightning_memory"


@dataclass(frozen=True)
class LayerCost:
    """Bytes of one token: ``saved`` for backward, the layer's input among them; ``widest`` is its widest tensor."""

    saved: float
    widest: float


def layer_cost(model: Any, dtype: torch.dtype) -> LayerCost:
    """The dearest layer of ``model`` (on the meta device), computed in ``dtype``."""
    return _costs(_Key(model, f"{type(model.config).__name__} {model.config.to_json_string()} {dtype}"), dtype)


@dataclass(frozen=True, eq=False)
class _Key:
    """A model, equal to another of the same configuration."""

    model: Any
    text: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@lru_cache(maxsize=4)
def _costs(key: _Key, dtype: torch.dtype) -> LayerCost:
    model = key.model
    family = family_of(model.config)
    assert family is not None
    layers = list(find(model, family.parts.layers))
    # One of each kind: kinds differ in the names and shapes of their parameters.
    kinds = {str([(name, p.shape) for name, p in layer.named_parameters()]): layer for layer in layers}
    counted = [_counted(model, layer, family, dtype) or computed(model.config, dtype) for layer in kinds.values()]
    return max(counted, key=lambda cost: cost.saved)


def _counted(model: Any, layer: nn.Module, family: Family, dtype: torch.dtype) -> LayerCost | None:
    """The cost of ``layer``; None where it does not run without values."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attention)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    seen: dict[int, int] = {}
    widest = 0

    def pack(saved: Tensor) -> Tensor:
        nonlocal widest
        base = saved._base if saved._is_view() else saved
        if not isinstance(base, nn.Parameter):
            storage = saved.untyped_storage()
            seen[storage._cdata] = storage.nbytes()
            kept.append(storage)  # an address must not be used twice
            widest = max(widest, saved.nbytes)
        return saved

    kept: list[Any] = []
    types = [parameter.dtype for parameter in layer.parameters()]
    try:
        layer.to(dtype)
        hidden = torch.empty(1, _TOKENS, config.hidden_size, dtype=dtype, device="meta", requires_grad=True)
        positions = torch.arange(_TOKENS, device="meta")[None]
        kind = find(layer, family.rotary_kind) if family.rotary_kind is not None else None
        rotary = find(model, family.parts.rotary).to("meta")
        embeddings = rotary(hidden.detach(), positions, *(() if kind is None else (kind,)))
        with saved_tensors_hooks(pack, lambda saved: saved):
            layer(hidden, attention_mask=None, position_embeddings=embeddings, position_ids=positions)
    except Exception:  # noqa: BLE001  # whatever a layer does with values that are not there
        return None
    finally:
        config._attn_implementation = before
        for parameter, own in zip(layer.parameters(), types, strict=True):
            parameter.data = parameter.data.to(own)
    return LayerCost(sum(seen.values()) / _TOKENS, widest / _TOKENS)


class _Attention(torch.autograd.Function):
    """An attention kernel that keeps queries, keys, values, its result and the log-sum-exp, as flash attention does."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query[..., : value.shape[-1]])
        total = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError("nothing is computed on the meta device")


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    run: Callable[..., Tensor] = _Attention.apply
    return run(query, key, value).transpose(1, 2), None


def computed(config: Any, dtype: torch.dtype) -> LayerCost:
    """The cost of a layer with grouped queries, two norms and a gated MLP, or of one with experts, from its sizes.

    With H the hidden size, A the width of all heads, K that of the key heads, I the width of the MLP, and k experts for
    a token: 6 H for two norms (input, normalised, output), 5 A + 4 K for attention (projections, normalised and rotated
    queries and keys, values, result twice), 4 k I (gate, its activation, up, product), and 2 k H where tokens are
    brought to experts. Norms in half precision also keep 4 H float32 numbers.
    """
    heads, hidden = config.num_attention_heads, config.hidden_size
    head = getattr(config, "head_dim", None) or hidden // heads
    queries, keys = heads * head, (getattr(config, "num_key_value_heads", None) or heads) * head
    used = getattr(config, "num_experts_per_tok", None) or 0
    width = config.moe_intermediate_size if used and hasattr(config, "moe_intermediate_size") else None
    inner = (used or 1) * (width or getattr(config, "intermediate_size", 4 * hidden))
    numbers = 6 * hidden + 5 * queries + 4 * keys + 4 * inner + 2 * used * hidden
    wide = 0 if dtype == torch.float32 else 4 * 4 * hidden
    return LayerCost(numbers * dtype.itemsize + wide, max(inner, queries, hidden) * dtype.itemsize)
