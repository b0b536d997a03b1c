"""A repair of vLLM: new weights reach the parameters that a model's class copies into itself, as gpt-oss does.

vLLM 0.32 reloads layer by layer: until a layer's weights are complete its parameters have no storage, and their loaders
collect what arrives. The class of gpt-oss does not call the loaders of its experts and attention sinks. It copies into
the parameters, where the values are lost: the engine keeps the old ones, answers with status 200, and the log-probs are
wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: Classes that copy, each with the last parts of the names that it copies into.
COPIED = {"GptOssModel": ("w13_weight", "w2_weight", "w13_bias", "w2_bias", "sinks")}


class Receiver:
    """Stands in for a parameter without storage: what is copied into it goes to the parameter's loader."""

    def __init__(self, parameter: torch.nn.Parameter) -> None:
        self._parameter: Any = parameter

    @property
    def data(self) -> Receiver:
        return self

    def copy_(self, values: torch.Tensor) -> None:
        self._parameter.weight_loader(self._parameter, values)


@contextmanager
def copies_are_loaded(model: torch.nn.Module) -> Iterator[None]:
    """While this is open, ``model.load_weights`` gives every weight to a loader. ``model`` is being reloaded."""
    found = [(module, COPIED[name]) for module in model.modules() if (name := type(module).__name__) in COPIED]
    for module, last_parts in found:
        module.named_parameters = _with_receivers(module, last_parts)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module, _ in found:
            del module.named_parameters


def _with_receivers(module: torch.nn.Module, last_parts: tuple[str, ...]) -> Any:
    def named_parameters(*args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        for name, parameter in type(module).named_parameters(module, *args, **kwargs):
            owner, _, last = name.rpartition(".")
            if last in last_parts and parameter.is_meta:
                _collect_copies(module.get_submodule(owner), last, parameter)
                yield name, Receiver(parameter)
            else:
                yield name, parameter

    return named_parameters


def _collect_copies(layer: torch.nn.Module, name: str, parameter: Any) -> None:
    """Let the loader of ``parameter`` collect whole values. Before, it took those of one expert at a time."""
    from vllm.model_executor.model_loader.reload.layerwise import _get_original_loader, make_online_process_loader
    from vllm.model_executor.model_loader.weight_utils import default_weight_loader

    if _get_original_loader(parameter) is not default_weight_loader:
        parameter.weight_loader = default_weight_loader
        parameter.weight_loader = make_online_process_loader(layer, name)
