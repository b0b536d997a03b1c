"""Weights that a model's class copies into its parameters arrive while vLLM reloads it layer by layer.

``pytest -m slow tests/e2e/test_families.py -k gpt`` shows the same with vLLM's own class of gpt-oss.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("vllm")

from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
    record_metadata_for_reloading,
)

from tau2_lightning.rollout.engine.in_vllm.copied_weights import copies_are_loaded

# Importing vLLM takes as long as all other unit tests of the engine.
pytestmark = pytest.mark.slow


class Experts(nn.Module):
    """A layer whose parameter has a loader for one expert at a time, as vLLM's have."""

    def __init__(self) -> None:
        super().__init__()
        self.w2_weight = nn.Parameter(torch.zeros(4, 3), requires_grad=False)
        setattr(self.w2_weight, "weight_loader", self.load_one)  # noqa: B010  # a parameter has no such attribute

    def load_one(self, param: nn.Parameter, loaded: torch.Tensor, weight_name: str, expert: int) -> None:
        param.data[expert].copy_(loaded)


class GptOssModel(nn.Module):
    """Copies as vLLM's class of this name does."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts()
        self.sinks = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.norm = nn.Parameter(torch.zeros(2), requires_grad=False)

    @torch.no_grad()
    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        parameters = dict(self.named_parameters())
        parameters["experts.w2_weight"].copy_(weights["experts"])
        parameters["sinks"].data.copy_(weights["sinks"])
        norm: Any = parameters["norm"]
        norm.weight_loader(norm, weights["norm"])


def reloaded(value: float, *, repaired: bool) -> dict[str, float]:
    """What each parameter holds after a reload with ``value`` in all of them, and a second with twice that."""
    inner = GptOssModel()
    model = nn.ModuleDict({"model": inner})
    record_metadata_for_reloading(model)
    before = dict(model.named_parameters())
    for number in (value, 2 * value):
        initialize_layerwise_reload(model)
        with copies_are_loaded(model) if repaired else nullcontext():
            inner.load_weights(
                {
                    "experts": torch.full((4, 3), number),
                    "sinks": torch.full((5,), number),
                    "norm": torch.full((2,), number),
                }
            )
        finalize_layerwise_reload(model, None)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items()), "kernels keep references"
    return {name.rpartition(".")[2]: float(parameter.mean()) for name, parameter in after.items()}


def test_copied_weights_arrive_and_others_as_before() -> None:
    assert reloaded(1.5, repaired=True) == {"w2_weight": 3.0, "sinks": 3.0, "norm": 3.0}


def test_without_the_repair_they_are_lost() -> None:
    lost = reloaded(1.5, repaired=False)
    assert lost["w2_weight"] == 0.0, "the old values stay"
    assert lost["sinks"] != 3.0, "memory as it was found, since another weight of the same layer arrived"
