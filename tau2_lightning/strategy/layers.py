"""Activation checkpointing and torch.compile of decoder layers, the same in every layout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
import torch.nn.attention.varlen  # registers the operator that packed rows use on GPUs
from torch import nn
from torch.utils._triton import has_triton
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from tau2_lightning.errors import ConfigError, Violation

from . import tree_attention  # noqa: F401  registers the operator of tokens that rows share

ActivationCheckpointing = Literal["none", "selective", "full"]

aten = torch.ops.aten
# Results that cost more to compute again than to keep: attention always, every other matrix product.
_ATTENTION = {
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
    torch.ops.tau2_lightning.forest_attention.default,
}
_PRODUCTS = {aten.mm.default, aten.addmm.default}


def checkpoint_activations(model: Any, mode: ActivationCheckpointing) -> None:
    """Keep fewer activations of the layers of a transformers model.

    ``full`` keeps a layer's input and computes the layer again in backward. ``selective`` (torchtitan's operator
    policy) also keeps attention results and every other matrix product. Raises ConfigError for an unknown mode.
    """
    if mode not in get_args(ActivationCheckpointing):
        allowed = ", ".join(get_args(ActivationCheckpointing))
        raise ConfigError([Violation("actor.activation_checkpointing", mode, "unknown", f"One of {allowed}")])
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = _selective_contexts
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _selective_contexts() -> Any:
    products = {False: 0, True: 0}

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operator in _PRODUCTS:
            products[context.is_recompute] += 1
            keep = products[context.is_recompute] % 2 == 1
        else:
            keep = operator in _ATTENTION
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    make: Any = create_selective_checkpoint_contexts  # untyped
    return make(policy)


def compile_layers(layers: Iterable[nn.Module], device: torch.device) -> None:
    """Compile each layer in place with torch.compile, at its first call. Raises ConfigError without a compiler."""
    check_compiler(device)
    for layer in layers:
        layer.compile()


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError when torch.compile finds no compiler for this kind of device."""
    if device.type == "cuda":
        if not has_triton():
            raise _no_compiler("Triton is not installed or does not know this GPU", "Install triton")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise _no_compiler("there is no C++ compiler", "Install g++ (or name one in CXX)") from error


def _no_compiler(problem: str, remedy: str) -> ConfigError:
    return ConfigError([Violation("actor.compile", True, problem, f"{remedy}, or set actor.compile=false")])
