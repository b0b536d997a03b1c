"""What saves memory changes no gradient beyond what it says: narrow base weights, what is kept on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tau2_lightning.errors import ConfigError
from tau2_lightning.strategy.activation_offloading import ActivationsOnHost
from tau2_lightning.strategy.assembly import Options
from tau2_lightning.strategy.lora import LoRASettings
from tau2_lightning.strategy.optimizer import adamw
from tests.strategy.distributed import fork
from tests.strategy.test_lora import set_factors
from tests.strategy.tiny import clipped_loss, connected, full, full_gradients, share, tiny_batches, tiny_model

LORA = LoRASettings(4, 6.0)


def half_model() -> Any:
    """A model whose weights are bfloat16 numbers, as the files of published models are."""
    model = tiny_model(tied=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    return model


def adapter_step(text: str, base: str) -> dict[str, Any]:
    compute = connected(text, lora=LORA, precision="bf16", base_dtype=base)
    model = compute.parallelize(half_model()).train()
    set_factors(model)
    loss = compute.forward_backward(share(tiny_batches(), compute), clipped_loss).loss
    gradients = full_gradients(compute)
    norm = compute.base_norm()
    adamw(model.parameters(), lr=1e-2).step()
    exported = {n: t.float().clone() for bucket in compute.iter_full_weights(10_000) for n, t in bucket}
    types = {p.dtype for p in model.parameters() if not p.requires_grad}
    return {"loss": loss, "gradients": gradients, "norm": norm, "exported": exported, "types": types}


@pytest.mark.parametrize("text", ["d2", "t2", pytest.param("d2p2", marks=pytest.mark.slow)])
def test_a_frozen_base_in_bfloat16_computes_as_one_in_float32(text: str) -> None:
    """FSDP casts parameters to bfloat16 for the computation, and those of the files are such numbers already: adapters
    get the same gradients. What is exported is rounded once."""
    world = 4 if text == "d2p2" else 2
    wide, narrow = fork(world, adapter_step, text, "float32"), fork(world, adapter_step, text, "bfloat16")
    assert wide[0]["types"] == {torch.float32} and narrow[0]["types"] == {torch.bfloat16}
    for a, b in zip(wide, narrow, strict=True):
        assert torch.equal(a["loss"], b["loss"]) and a["norm"] == pytest.approx(b["norm"], rel=1e-6)
        assert a["gradients"].keys() == b["gradients"].keys()
        for name, gradient in a["gradients"].items():
            assert torch.equal(gradient, b["gradients"][name]), name
            assert gradient.dtype == torch.float32
    moved = 0
    for name, weight in wide[0]["exported"].items():
        torch.testing.assert_close(narrow[0]["exported"][name], weight, rtol=2**-8, atol=1e-6)
        moved += not torch.equal(narrow[0]["exported"][name], half_model().state_dict()[name])
    assert moved  # adapters are merged


def test_a_base_in_bfloat16_on_one_process_of_a_cpu_stays_near() -> None:
    """There autocast computes, and it keeps the residual stream in the embedding's dtype."""
    wide, narrow = adapter_step("d1", "float32"), adapter_step("d1", "bfloat16")
    assert float(narrow["loss"]) == pytest.approx(float(wide["loss"]), abs=2e-2)
    largest = max(float(g.abs().max()) for g in wide["gradients"].values())
    for name, gradient in wide["gradients"].items():
        assert float((narrow["gradients"][name] - gradient).abs().max()) < 0.05 * largest, name


def test_a_base_in_bfloat16_needs_computation_in_bfloat16() -> None:
    with pytest.raises(ConfigError, match=r"actor\.precision=bf16, or actor\.lora\.base_dtype=float32"):
        Options(lora=LORA, base_dtype="bfloat16", precision="fp32")
    assert not Options(base_dtype="bfloat16").narrow_base  # nothing is frozen without adapters


def offloaded(text: str, offload: bool) -> dict[str, Any]:
    compute = connected(text, precision="bf16", offload_params=offload)
    model = compute.parallelize(tiny_model()).train()
    optimizer = adamw(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        losses.append(compute.forward_backward(share(tiny_batches(), compute), clipped_loss).loss)
        norm = compute.clip_grad_norm(0.05)
        optimizer.step()
    return {"losses": losses, "norm": norm, "weights": {n: full(p) for n, p in model.named_parameters()}}


@pytest.mark.parametrize("text", ["d2", pytest.param("d2t2", marks=pytest.mark.slow)])
def test_offloaded_parameters_take_the_same_steps(text: str) -> None:
    world = 4 if text == "d2t2" else 2
    kept, moved = fork(world, offloaded, text, False), fork(world, offloaded, text, True)
    assert torch.equal(kept[0]["losses"][1], moved[0]["losses"][1]) and torch.equal(kept[0]["norm"], moved[0]["norm"])
    assert all(torch.equal(weight, moved[0]["weights"][name]) for name, weight in kept[0]["weights"].items())
    assert not torch.equal(kept[0]["losses"][0], kept[0]["losses"][1])


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_activations_on_the_host_give_the_same_gradients(checkpointing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tau2_lightning.strategy import activation_offloading

    monkeypatch.setattr(activation_offloading, "SMALLEST_BYTES", 1)
    monkeypatch.setattr(ActivationsOnHost.__init__, "__defaults__", (1,))
    counted: list[int] = []
    pack = ActivationsOnHost._pack

    def counting(self: ActivationsOnHost, saved: torch.Tensor) -> Any:
        found = pack(self, saved)
        if not isinstance(found, torch.Tensor):
            counted.append(saved.nbytes)
        return found

    monkeypatch.setattr(ActivationsOnHost, "_pack", counting)
    gradients = []
    for offloading in (False, True):
        compute = connected("d1", activation_checkpointing=checkpointing, activation_offloading=offloading)
        compute.parallelize(tiny_model()).train()
        compute.forward_backward(tiny_batches(), clipped_loss)
        gradients.append(full_gradients(compute))
        assert bool(counted) == offloading
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
    weights = {parameter.numel() * 4 for parameter in tiny_model().parameters() if parameter.ndim > 1}
    assert checkpointing == "full" or not {size for size in weights if counted.count(size) >= 4}  # parameters stay


def test_offloading_moves_large_tensors_only() -> None:
    with ActivationsOnHost(smallest=1000) as moved:
        x = torch.randn(10, 10, requires_grad=True)
        y = torch.randn(100, 100, requires_grad=True)
        out = x.exp().sum() + y.exp().sum()
    assert moved.bytes == 40_000
    out.backward()
    assert torch.equal(y.grad, y.detach().exp())  # type: ignore[arg-type]
