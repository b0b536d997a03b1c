"""The memory that a plan names is what ranks hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import GPT2Config

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.strategy import activation_memory
from tau2_lightning.strategy.activation_memory import computed, layer_cost
from tau2_lightning.strategy.held_parameters import model_without_memory
from tau2_lightning.strategy.lora import LoRASettings
from tau2_lightning.strategy.memory import Demand, memory_of_stages, weight_of_kept
from tests.strategy.distributed import fork
from tests.strategy.tiny import connected, tiny_model

LORA = LoRASettings(4, 8.0, ("q_proj", "o_proj"))


def held(text: str, family: str, lora: LoRASettings | None) -> tuple[int, int]:
    """This rank's stage, and the bytes of its float32 weights, and of gradients and moments where they are trained."""
    compute = connected(text, lora=lora)
    model = compute.parallelize(tiny_model(family=family, tied=family == "qwen3"))
    local = [(p.to_local() if isinstance(p, DTensor) else p, p.requires_grad) for p in model.parameters()]
    return compute.mesh.coordinate("pp"), sum(part.numel() * (16 if trained else 4) for part, trained in local)


CASES = [("qwen3_moe_mixed", "t2e2", None), ("qwen3", "p2", None), ("qwen3", "d2", LORA)]
SLOW = [("qwen3_moe", "d2t2e2", None), ("qwen3_moe", "p2t2e2", None), ("qwen3_moe", "d2t2e4", LORA)]


@pytest.mark.parametrize(
    ("family", "text", "lora"), [*CASES, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)]
)
def test_weights_gradients_and_moments_are_counted(family: str, text: str, lora: LoRASettings | None) -> None:
    spec = ParallelSpec.parse(text)
    config = tiny_model(family=family, tied=family == "qwen3").config
    planned = memory_of_stages(config, spec, Demand(precision="fp32", lora=lora))
    assert [one.stage for one in planned] == list(range(spec.p))
    found: dict[int, list[int]] = {}
    for stage, held_bytes in fork(spec.world, held, text, family, lora):
        found.setdefault(stage, []).append(held_bytes)
    for stage, of_ranks in found.items():
        # Norms and adapters' whole factors count once each; uneven shards are planned as the largest one.
        assert planned[stage].state == pytest.approx(max(of_ranks), rel=0.03)
        assert min(of_ranks) > 0.9 * max(of_ranks)


def test_a_kept_token_counts_as_the_memory_that_it_takes_beside_a_token_of_a_micro_batch() -> None:
    """Keys, values and the sums of their gradients against what a layer saves, or only its input."""
    config = tiny_model().config
    bytes_kept = 2 * config.num_key_value_heads * config.head_dim * (4 + 4)
    saved = layer_cost(model_without_memory(config), torch.float32).saved
    assert weight_of_kept(config, "fp32", "none") == pytest.approx(bytes_kept / saved, rel=1e-3)
    assert weight_of_kept(config, "fp32", "full") == pytest.approx(bytes_kept / (4 * config.hidden_size))
    compute = connected("d1", activation_checkpointing="full")
    compute.parallelize(tiny_model())
    assert compute.trunk_weight == weight_of_kept(config, "fp32", "full")
    plain = connected("d1", tree_training=False)
    plain.parallelize(tiny_model())
    assert plain.trunk_weight == 0.0


def test_a_whole_model_on_one_gpu() -> None:
    config = tiny_model().config
    count = sum(p.numel() for p in tiny_model().parameters())
    (exact,) = memory_of_stages(config, ParallelSpec(), Demand(precision="fp32"))
    (narrow,) = memory_of_stages(config, ParallelSpec(), Demand())
    assert (exact.parameters, exact.state) == (count, 16 * count) and exact.weights == exact.gradients == 4 * count
    assert exact.gathered < count < 2 * count < narrow.gathered and narrow.state == 16 * count
    assert exact.activations > narrow.activations > 0
    in_layers = exact.gathered + exact.activations + max(exact.working, exact.logits)
    assert exact.total == exact.state + max(in_layers, exact.ends)
    assert exact.resident == exact.weights + exact.optimizer == 12 * count


def test_what_a_layer_saves_is_what_autograd_keeps() -> None:
    """Counted on the meta device, against the tensors that a real forward pass of the layer saves."""
    model = tiny_model()
    cost = layer_cost(model_without_memory(model.config), torch.float32)
    sizes = {"hidden": 32, "queries": 4 * 8, "keys": 2 * 8, "inner": 64}
    # Norms: input, normalised, output, twice. Attention: projections, normalised, rotated; values; result twice.
    numbers = 6 * sizes["hidden"] + 5 * sizes["queries"] + 4 * sizes["keys"] + 4 * sizes["inner"]
    assert cost.saved / 4 == pytest.approx(numbers, rel=0.15)
    assert cost.saved == pytest.approx(computed(model.config, torch.float32).saved, rel=0.15)
    half = layer_cost(model_without_memory(model.config), torch.bfloat16)
    assert cost.saved / 2 < half.saved < cost.saved  # norms keep float32 copies


def test_less_is_kept_of_activations_when_they_are_computed_again() -> None:
    config = tiny_model(layers=8).config
    kept = [
        memory_of_stages(config, ParallelSpec(p=2), Demand(activation_checkpointing=mode))[0].activations
        for mode in ("full", "selective", "none")
    ]
    assert kept == sorted(kept) and len(set(kept)) == 3


def test_logits_of_many_labels_exist_in_parts() -> None:
    found = []
    for vocabulary in (500, 75_000, 150_000):
        config = tiny_model().config
        config.vocab_size = vocabulary
        head = vocabulary * config.hidden_size * 2  # the gradient of the head
        found.append(memory_of_stages(config, ParallelSpec(), Demand())[0].logits - head)
    assert found[0] < found[1] == found[2]


def test_unknown_families_are_named() -> None:
    with pytest.raises(ValueError, match="gpt2 is of no known family"):
        memory_of_stages(GPT2Config(n_layer=1), ParallelSpec(), Demand())


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_what_a_kept_token_weighs_does_not_depend_on_who_asks_first(context: Any) -> None:
    config = tiny_model().config
    activation_memory._costs.cache_clear()
    with context():
        first = weight_of_kept(config, "fp32", "none")
    activation_memory._costs.cache_clear()
    assert first == weight_of_kept(config, "fp32", "none") > 0
