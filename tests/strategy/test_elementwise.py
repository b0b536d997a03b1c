"""Norms and rotations against transformers' own modules, and against float64: results and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.run import setup as run_setup
from tau2_lightning.run.compose import load_config
from tau2_lightning.strategy.assembly import Options
from tau2_lightning.strategy.attention import attend_within_rows
from tau2_lightning.strategy.elementwise import RMSNorm, rms_norm, rotate, use_handwritten
from tau2_lightning.strategy.tensor_parallel import SplitNorm
from tau2_lightning.strategy.tensor_parallel import rms_norm as plain_rms_norm
from tests.strategy.distributed import fork
from tests.strategy.tiny import clipped_loss, connected, full_gradients, tiny_batches, tiny_model

EPS = 1e-6
SHAPES = [(3, 7, 32), (2, 5, 4, 16), (1, 1, 8)]


def by_hand(model: Any) -> None:
    layers = list(model.model.layers)
    attend_within_rows(model.config, layers, "self_attn", None)
    use_handwritten(model, layers, "self_attn")


def norm_of(width: int, dtype: torch.dtype = torch.float32) -> Any:
    norm = Qwen3RMSNorm(width, EPS)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    return norm.to(dtype)


def through(function: Any, weight: nn.Parameter, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Result, and gradients of x and of the weight."""
    leaf = x.clone().requires_grad_()
    weight.grad = None
    out = function(leaf)
    out.backward(upstream.to(out.dtype))
    assert leaf.grad is not None and weight.grad is not None
    return out.detach(), leaf.grad, weight.grad.clone()


def exact_norm(x: Tensor, weight: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result in float64, position by position, with the derivative of every component."""
    x, weight, upstream = (t.double() for t in (x, weight, upstream))
    out, grad, grad_weight = torch.empty_like(x), torch.empty_like(x), torch.zeros_like(weight)
    rows = zip(x.flatten(0, -2), upstream.flatten(0, -2), out.flatten(0, -2), grad.flatten(0, -2), strict=True)
    for row, given, to, back in rows:
        r = 1 / torch.sqrt((row**2).mean() + EPS)
        to.copy_(weight * row * r)
        jacobian = torch.diag(weight * r) - torch.outer(weight * row, row) * r**3 / len(row)
        back.copy_(jacobian.T @ given)
        grad_weight += given * row * r
    return out, grad, grad_weight


@pytest.mark.parametrize("shape", SHAPES)
def test_norm_is_transformers_and_exact(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm, x, upstream = norm_of(shape[-1]), 3 * torch.randn(shape), torch.randn(shape)
    ours = through(RMSNorm(norm), norm.weight, x, upstream)
    for mine, theirs, exact in zip(
        ours, through(norm, norm.weight, x, upstream), exact_norm(x, norm.weight.detach(), upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(mine.double(), exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_norm_in_half_precision_rounds_where_transformers_does(weight_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm, shape = norm_of(32, weight_dtype), (3, 7, 32)
    x, upstream = torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()
    mine, theirs = (through(f, norm.weight, x, upstream) for f in (RMSNorm(norm), norm))
    assert mine[0].dtype == theirs[0].dtype and torch.equal(mine[0], theirs[0])
    exact = exact_norm(x, norm.weight.detach(), upstream)
    for k in (1, 2):
        assert mine[k].dtype == theirs[k].dtype
        errors = [float((found[k].double() - exact[k]).abs().max()) for found in (mine, theirs)]
        assert errors[0] <= 1.5 * errors[1] + 1e-6  # transformers rounds between operations as well


def test_gradients_nobody_needs_are_not_made() -> None:
    x, weight = torch.randn(2, 3, 8, requires_grad=True), torch.ones(8)
    rms_norm(x, weight, EPS).sum().backward()
    assert x.grad is not None and weight.grad is None
    frozen, trained = torch.randn(2, 3, 8), torch.ones(8, requires_grad=True)
    rms_norm(frozen, trained, EPS).sum().backward()
    assert trained.grad is not None and frozen.grad is None


def angles(length: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    half = torch.outer(torch.arange(length).float(), 10000 ** -(torch.arange(0, width, 2) / width))
    both = torch.cat([half, half], -1)[None]
    return both.cos().to(dtype), both.sin().to(dtype)


@pytest.mark.parametrize("batches", [1, 3])
def test_rotation_is_transformers_and_keeps_lengths(batches: int) -> None:
    torch.manual_seed(0)
    cos, sin = (x.expand(batches, -1, -1) for x in angles(7, 16))
    query, key = (torch.randn(3, 7, heads, 16).transpose(1, 2) for heads in (4, 2))
    upstream = torch.randn(3, 4, 7, 16)
    mine, theirs = query.clone().requires_grad_(), query.clone().requires_grad_()
    out, want = rotate(mine, cos, sin), apply_rotary_pos_emb(theirs, key, cos, sin)[0]
    out.backward(upstream), want.backward(upstream)
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.norm(dim=-1), query.norm(dim=-1))
    assert not torch.allclose(rotate(query, cos, -sin), want, atol=1e-2)  # control: rotated the other way


def test_rotation_in_half_precision_is_no_further_from_the_exact_one() -> None:
    torch.manual_seed(0)
    cos, sin = angles(64, 32, torch.bfloat16)
    x = torch.randn(2, 4, 64, 32).bfloat16()
    exact = rotate(x.double(), cos.double(), sin.double())
    theirs = apply_rotary_pos_emb(x, x, cos, sin)[0]
    out = rotate(x, cos, sin)
    assert out.dtype == theirs.dtype == torch.bfloat16
    assert (out.double() - exact).abs().mean() <= (theirs.double() - exact).abs().mean()


def test_rotation_of_half_precision_by_float32_angles() -> None:
    """As under autocast on a CPU, where only the outputs of linear layers are bfloat16."""
    torch.manual_seed(0)
    (cos, sin), x, upstream = angles(7, 16), torch.randn(2, 4, 7, 16).bfloat16(), torch.randn(2, 4, 7, 16)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, want = rotate(mine, cos, sin), apply_rotary_pos_emb(theirs, x, cos, sin)[0]
    out.backward(upstream), want.backward(upstream)
    assert out.dtype == want.dtype == torch.float32 and mine.grad is not None and mine.grad.dtype == torch.bfloat16
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-2, atol=1e-2)


def test_the_plain_norm_of_split_layers_is_the_same_formula() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 7, 16), torch.randn(16)
    torch.testing.assert_close(plain_rms_norm(x, weight, EPS), rms_norm(x, weight, EPS), rtol=1e-6, atol=1e-6)
    norm = norm_of(16)
    assert torch.equal(plain_rms_norm(x, norm.weight, EPS), norm(x)), "transformers' own, to the bit"


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_every_norm_is_replaced_and_no_name_changes(family: str) -> None:
    model: Any = tiny_model(family=family)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    norms = sum(type(m).__name__.endswith("RMSNorm") for m in model.modules())
    ids = torch.arange(12)[None]
    want = model(input_ids=ids, use_cache=False).logits
    by_hand(model)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert sum(type(m) is RMSNorm for m in model.modules()) == norms > 0
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "device", "want"),
    [
        ({}, "cpu", False),
        ({"handwritten_elementwise": True}, "cpu", True),
        ({"handwritten_elementwise": True}, "cuda", False),  # not measured there
        ({"handwritten_elementwise": True, "compile_blocks": True}, "cpu", False),  # a compiler fuses the formulas
    ],
)
def test_the_switch_counts_on_a_cpu_without_a_compiler(options: dict[str, Any], device: str, want: bool) -> None:
    assert Options(**options).handwrites(torch.device(device)) is want


@pytest.mark.parametrize(
    ("words", "want"),
    [
        ([], True),  # the embedded tiny policy
        (["actor.handwritten_elementwise=false"], False),
        (["actor.path=owner/name"], False),
        (["actor.path=owner/name", "actor.handwritten_elementwise=true"], True),
    ],
)
def test_runs_of_the_tiny_policy_ask_for_it(words: list[str], want: bool, tmp_path: Path) -> None:
    trainer: Any = run_setup.build_trainer(load_config([*words, "logger=csv"], check=False), RunFolder(tmp_path))
    assert trainer.strategy.compute.options.handwritten_elementwise is want


def work(layout: str, family: str, by_hand: bool) -> dict[str, Any]:
    compute = connected(layout, handwritten_elementwise=by_hand)
    model = compute.parallelize(tiny_model(family=family))
    kinds = {type(module) for module in model.modules()}
    formulas = {module.formula for module in model.modules() if isinstance(module, SplitNorm)}
    loss = compute.forward_backward(tiny_batches(), clipped_loss).loss
    own = RMSNorm in kinds or rms_norm in formulas
    return {"loss": float(loss), "gradients": full_gradients(compute), "by hand": own, "split": bool(formulas)}


@pytest.mark.parametrize(("layout", "family"), [("d1", "qwen3"), ("d1", "qwen3_moe"), ("t2", "qwen2"), ("p2", "qwen3")])
def test_a_model_trains_the_same_with_and_without(layout: str, family: str) -> None:
    found = {switch: fork(int(layout[1:]), work, layout, family, switch) for switch in (True, False)}
    for mine, theirs in zip(found[True], found[False], strict=True):
        assert mine["by hand"] and not theirs["by hand"] and mine["split"] == (layout == "t2")
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
        assert mine["gradients"].keys() == theirs["gradients"].keys()
        for name, gradient in mine["gradients"].items():
            torch.testing.assert_close(gradient, theirs["gradients"][name], rtol=1e-4, atol=1e-6)
