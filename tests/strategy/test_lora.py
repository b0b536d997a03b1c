"""LoRA against PEFT itself: gradients, a trained adapter, the merged export, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.errors import ConfigError
from tau2_lightning.strategy.lora import LoRASettings, peft_name
from tests.strategy.distributed import fork
from tests.strategy.test_compute import transformers_outputs
from tests.strategy.tiny import clipped_loss, connected, full_gradients, share, tiny_batches, tiny_model

SETTINGS = LoRASettings(r=4, alpha=6.0)


def set_factors(model: Any) -> None:
    """B starts at zero, where A has no gradient: give every adapter values that show a wrong shard or scale."""
    for name, parameter in sorted(model.named_parameters()):
        if "lora_B" in name:
            full = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            with torch.no_grad():
                if hasattr(parameter, "device_mesh"):
                    from torch.distributed.tensor import distribute_tensor

                    full = distribute_tensor(full, parameter.device_mesh, parameter.placements)
                parameter.copy_(full)


def work(text: str, folder: str | None = None, settings: LoRASettings = SETTINGS) -> dict[str, Any]:
    """Two accumulated calls, a clip, an SGD step, then all results: weights, adapter folder, export."""
    compute = connected(text, lora=settings)
    model = compute.parallelize(tiny_model(tied=True)).train()
    set_factors(model)
    batches = share(tiny_batches(), compute)
    losses = [compute.forward_backward(half, clipped_loss).loss for half in (batches[:1], batches[1:])]
    gradients = full_gradients(compute)
    norm = compute.clip_grad_norm(0.05)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    with compute.base_only():
        base = compute.forward_backward(batches, clipped_loss, train=False).loss
    after = compute.forward_backward(batches, clipped_loss, train=False).loss
    if folder:
        compute.save_pretrained(folder)
    return {
        "loss": sum(losses), "norm": norm, "base": base, "after": after, "gradients": gradients,
        "weights": {n: t.clone() for bucket in compute.iter_full_weights(10_000) for n, t in bucket},
    }  # fmt: skip


@pytest.fixture(scope="module")
def peft() -> dict[str, Any]:
    """PEFT's own model, all rows unpadded, plain autograd."""
    from peft import LoraConfig, get_peft_model

    ours = connected("d1", lora=SETTINGS)
    initial = {peft_name(n): p.detach().clone() for n, p in ours.parallelize(tiny_model(tied=True)).named_parameters()}
    base = tiny_model(tied=True)
    config = LoraConfig(r=SETTINGS.r, lora_alpha=SETTINGS.alpha, target_modules="all-linear", lora_dropout=0.0)
    model = get_peft_model(base, config)
    factors = {n.replace(".default.", "."): p for n, p in model.named_parameters() if "lora_" in n}
    set_factors(ours.model)
    start = {peft_name(n): p for n, p in ours.model.named_parameters() if ".adapter." in n}
    assert factors.keys() == start.keys()
    for name, parameter in factors.items():
        if "lora_A" in name:
            assert float(parameter.std() / initial[name].std()) == pytest.approx(1, rel=0.3)  # the same distribution
        parameter.data.copy_(start[name])
    batches = tiny_batches()
    losses = [clipped_loss(transformers_outputs(model, mb), mb)[0] for mb in batches]
    torch.stack(losses).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in factors.items()}
    norm = torch.nn.utils.clip_grad_norm_(list(factors.values()), 0.05)
    torch.optim.SGD(factors.values(), lr=1.0).step()
    with torch.no_grad(), model.disable_adapter():
        off = sum(float(clipped_loss(transformers_outputs(model, mb), mb)[0]) for mb in batches)
    with torch.no_grad():
        after = sum(float(clipped_loss(transformers_outputs(model, mb), mb)[0]) for mb in batches)
    loss = float(torch.stack(losses).sum())
    weights = dict(model.merge_and_unload().named_parameters())
    return {"loss": loss, "norm": norm, "base": off, "after": after, "gradients": gradients, "weights": weights}


@pytest.mark.parametrize(
    "text", ["d1", "d2", "t2", *(pytest.param(text, marks=pytest.mark.slow) for text in ("p2", "d2t2", "d2p2", "c2"))]
)
def test_layouts_train_as_peft_does(text: str, peft: dict[str, Any], tmp_path: Path) -> None:
    ranks = fork(ParallelSpec.parse(text).world, work, text, str(tmp_path))
    seen = set()
    for rank in ranks:
        for key in ("loss", "norm", "base", "after"):
            assert abs(float(rank[key]) - float(peft[key])) < 1e-6, key
        for name, gradient in rank["gradients"].items():
            assert float((gradient - peft["gradients"][peft_name(name)]).abs().max()) <= 1e-6, name
            seen.add(peft_name(name))
    assert seen == set(peft["gradients"])  # every factor has a gradient, and nothing else has
    assert max(float(g.abs().max()) for g in peft["gradients"].values()) > 0.01
    assert abs(peft["after"] - peft["base"]) > 1e-3
    for name, weight in ranks[0]["weights"].items():
        assert float((weight - peft["weights"][name]).abs().max()) < 1e-6, name
    check_folders(tmp_path, peft)


def check_folders(folder: Path, peft: dict[str, Any]) -> None:
    """The export is the merged model; its ``adapter`` folder on the base model is the same model in PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    mb = tiny_batches()[1]
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(tiny_model(tied=True), folder / "adapter").eval()
    with torch.no_grad():
        left, right = (transformers_outputs(model, mb).logprobs for model in (exported, adapted))
    assert float((left - right).abs().max()) < 5e-6
    assert float((left - transformers_outputs(tiny_model(tied=True), mb).logprobs).abs().max()) > 1e-2


def test_the_starting_model_is_the_base_model_and_only_adapters_can_be_trained() -> None:
    compute, plain = connected("d1", lora=SETTINGS), connected("d1")
    model = compute.parallelize(tiny_model())
    plain.parallelize(tiny_model())
    a, b = (each.token_outputs(tiny_batches())[0].logprobs for each in (compute, plain))
    assert torch.equal(a, b)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7 * 4 and all(".adapter.lora_" in name for name in trained)


def test_chosen_modules_and_unknown_ones() -> None:
    compute = connected("d1", lora=LoRASettings(2, 4.0, ("q_proj", "down_proj")))
    compute.parallelize(tiny_model())
    assert {name.split(".")[4] for name in full_names(compute)} == {"q_proj", "down_proj"}
    with pytest.raises(ConfigError, match=r"no linear layer called qproj.*\n?.*q_proj"):
        connected("d1", lora=LoRASettings(2, 4.0, ("qproj",))).parallelize(tiny_model())


def full_names(compute: Any) -> list[str]:
    return [name for name, parameter in compute.model.named_parameters() if parameter.requires_grad]


def test_saving_an_adapter_without_adapters_raises(tmp_path: Path) -> None:
    compute = connected("d1")
    compute.parallelize(tiny_model())
    with pytest.raises(RuntimeError, match="without lora"):
        compute.save_adapter(tmp_path)
