"""Every family against transformers alone, in float32: gradients of packed and padded rows, and adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tau2_lightning.algorithm import GRPO
from tau2_lightning.microbatch import Node
from tau2_lightning.strategy import inputs
from tau2_lightning.strategy.elementwise import RMSNorm
from tau2_lightning.strategy.families.registry import FAMILIES, family_of
from tau2_lightning.strategy.fitting import why_not_shared
from tau2_lightning.strategy.lora import LoRASettings, plan_adapters
from tests.strategy.families.models import CONFIGS, batches, build, furthest, plain
from tests.strategy.test_compute import transformers_outputs
from tests.strategy.test_tree_training import batch as groups
from tests.strategy.test_tree_training import behind_a_system_prompt, largest_difference
from tests.strategy.test_tree_training import gradients as step_gradients
from tests.strategy.tiny import clipped_loss, connected, full_gradients

TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def references() -> dict[str, dict[str, Any]]:
    return {name: plain(build(name)) for name in CONFIGS}


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_transformers(name: str, packing: bool, references: dict[str, dict[str, Any]]) -> None:
    want, compute = references[name], connected("d1", packing=packing)
    compute.parallelize(build(name))
    assert family_of(compute.model.config) is not None and compute.packs is packing
    rows = batches(packed=packing)
    assert any(mb["model"].nodes is not None for mb in rows) is packing
    found = compute.token_outputs(rows)
    assert furthest([out.logprobs for out in found], want["logprobs"]) < 1e-5
    loss = compute.forward_backward(rows, clipped_loss).loss
    assert float(loss) == pytest.approx(want["loss"], abs=1e-6)
    gradients = full_gradients(compute)
    assert gradients.keys() == want["gradients"].keys()
    assert max(float(value.abs().max()) for value in want["gradients"].values()) > 0.01
    for key, gradient in gradients.items():
        assert float((gradient - want["gradients"][key]).abs().max()) <= TOLERANCE, key


COMMON = [name for name in CONFIGS if not FAMILIES[CONFIGS[name](8).model_type].own_projections]


@pytest.mark.parametrize("name", COMMON)
def test_handwritten_norms_and_rotations_compute_the_same(name: str, references: dict[str, dict[str, Any]]) -> None:
    want, compute = references[name], connected("d1", handwritten_elementwise=True)
    compute.parallelize(build(name))
    assert any(isinstance(module, RMSNorm) for module in compute.model.modules())
    compute.forward_backward(batches(), clipped_loss)
    for key, gradient in full_gradients(compute).items():
        assert float((gradient - want["gradients"][key]).abs().max()) <= TOLERANCE, key


@pytest.mark.parametrize("name", CONFIGS)
def test_negative_control_rows_that_leak_into_each_other_show(
    name: str, references: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Joined(inputs.Segments):
        def __init__(self, nodes: Any, device: torch.device, *kept: Any) -> None:
            super().__init__([Node(0, nodes[-1].end, nodes[-1].end)], device, *kept)

    monkeypatch.setattr(inputs, "Segments", Joined)
    compute = connected("d1")
    compute.parallelize(build(name))
    found = compute.token_outputs(batches())
    assert furthest([out.logprobs for out in found], references[name]["logprobs"]) > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_that_rows_share_are_computed_once_where_the_page_says_so(name: str) -> None:
    compute = connected("d1")
    compute.parallelize(build(name))
    assert compute.shares is (why_not_shared(compute.model.config) is None)
    if not compute.shares:
        with pytest.raises(ValueError, match="does not share tokens"):
            compute.token_outputs(groups().microbatches(10**6, packed=True, shared=True))
        return
    for rows, budget in ((groups(), 10**6), (behind_a_system_prompt(), 60)):
        ours, theirs = (
            step_gradients(compute, rows, b, shared, GRPO()) for b, shared in ((budget, True), (400, False))
        )
        assert largest_difference(ours, theirs) <= TOLERANCE


def targets(name: str) -> tuple[str, ...]:
    """Every linear layer by name: also where experts, which take no adapter, forbid "all-linear"."""
    model = build(name)
    head = model.get_output_embeddings()
    linear = (torch.nn.Linear,)
    found = {key.rpartition(".")[2] for key, m in model.named_modules() if isinstance(m, linear) and m is not head}
    return tuple(sorted(found))


@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_on_every_linear_layer_compute_what_the_merged_weights_do(name: str) -> None:
    compute = connected("d1", lora=LoRASettings(4, 8.0, targets(name)))
    compute.parallelize(build(name))
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in compute.model.named_parameters():
            if key.endswith("lora_B.weight"):
                parameter.normal_(0.0, 0.05)
    found = compute.token_outputs(batches())
    merged = {key: tensor for bucket in compute.iter_full_weights() for key, tensor in bucket}
    other = build(name)
    untouched = furthest([o.logprobs for o in found], [transformers_outputs(other, mb).logprobs for mb in batches()])
    lacking, unexpected = other.load_state_dict(merged, strict=False)
    assert not unexpected and set(lacking) <= {"lm_head.weight"}
    other.tie_weights()
    want = [transformers_outputs(other, mb).logprobs for mb in batches()]
    assert furthest([out.logprobs for out in found], want) < 2e-5
    assert untouched > 1e-3, "control: the adapters change nothing"


@pytest.mark.parametrize("name", ["Qwen3-MoE", "gpt-oss"])
def test_all_linear_is_refused_where_experts_would_be_left_out(name: str) -> None:
    with pytest.raises(Exception, match=r"experts\.down_proj.*would be left out.*Name the layers: k_proj"):
        plan_adapters(build(name), LoRASettings(4, 8.0))
