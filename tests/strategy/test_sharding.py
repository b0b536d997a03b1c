"""Sharded, replicated or both: the placement of parameters does not change results, and sums are made in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.tensor import Replicate
from torch.utils._python_dispatch import TorchDispatchMode

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.errors import ConfigError
from tau2_lightning.strategy import parallelize
from tests.strategy.distributed import fork
from tests.strategy.tiny import clipped_loss, connected, full_gradients, share, tiny_batches, tiny_model


def work(text: str, replicate: int) -> dict[str, Any]:
    compute = connected(text, replicate=replicate)
    model = compute.parallelize(tiny_model(tied=True))
    # Data ranks beyond two get nothing: every rank takes part in the collectives all the same.
    every = tiny_batches()
    rank, size = compute.mesh.coordinate("dp"), compute.spec.d
    batches = every[rank::size]
    outputs = [compute.forward_backward(half, clipped_loss) for half in (batches[:1], batches[1:])]
    gradients = full_gradients(compute)
    norm = compute.clip_grad_norm(0.05)
    torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4).step()
    after = compute.forward_backward(batches, clipped_loss, train=False).loss
    return {
        "gradients": gradients, "norm": float(norm), "loss": float(outputs[0].loss + outputs[1].loss),
        "after": float(after),
        "local": sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in model.parameters()),
        "copies": sum(isinstance(each, Replicate) for each in getattr(next(model.parameters()), "placements", ())),
    }  # fmt: skip


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return fork(1, work, "d1", 1)[0]


SLOW = [("d4", 2), ("d4", 4), ("d2t2", 2), ("d2p2", 2), ("d2c2", 2)]


@pytest.mark.parametrize(
    ("text", "replicate"), [("d2", 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_copies_and_hybrids_compute_the_same(text: str, replicate: int, one: dict[str, Any]) -> None:
    spec = ParallelSpec.parse(text)
    for rank in fork(spec.world, work, text, replicate):
        for name, gradient in rank["gradients"].items():
            want = one["gradients"]["model.embed_tokens.weight" if name == "lm_head.weight" else name]
            assert float((gradient - want).abs().max()) <= 1e-6, name
        for key in ("norm", "loss", "after"):
            assert abs(rank[key] - one[key]) < 1e-6, key
        assert rank["copies"] >= 1
        if text == f"d{spec.d}":  # memory: shards of d / replicate ranks
            assert abs(rank["local"] / one["local"] - replicate / spec.d) < 0.05
    assert max(float(gradient.abs().max()) for gradient in one["gradients"].values()) > 0.01


def test_copies_must_divide_the_ranks() -> None:
    with pytest.raises(ConfigError, match=r"actor.fsdp.replicate=3: does not divide the 4 ranks"):
        connected("d4", replicate=3)


class Reductions(TorchDispatchMode):
    """The dtypes that gradients are summed in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if "reduce_scatter" in name:
            flat = [leaf for arg in args for leaf in (arg if isinstance(arg, list | tuple) else (arg,))]
            self.seen |= {(name, leaf.dtype) for leaf in flat if isinstance(leaf, torch.Tensor)}
        return func(*args, **(kwargs or {}))


def reduced(precision: str) -> tuple[set[Any], set[Any]]:
    compute = connected("d2", precision=precision)
    model: Any = compute.parallelize(tiny_model(tied=True))
    computed: set[torch.dtype] = set()
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, out: computed.add(out.dtype))
    with Reductions() as mode:
        compute.forward_backward(share(tiny_batches(), compute), clipped_loss)
        seen = mode.seen
    return {dtype for _, dtype in seen}, computed


def test_bf16_is_computed_in_bf16_and_summed_in_fp32() -> None:
    for precision, compute in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for sums, computed in fork(2, reduced, precision):
            assert sums == {torch.float32} and computed == {compute}


def as_on_a_gpu(tied: bool) -> dict[str, Any]:
    """One process that computes in bfloat16 as on a GPU: dtypes seen, gradients, and what is left after a step."""
    parallelize.casts_parameters = lambda precision, device: precision == "bf16"
    compute = connected("d1", precision="bf16")
    model: Any = compute.parallelize(tiny_model(tied=tied))
    seen: dict[str, set[torch.dtype]] = {"residual": set(), "query": set()}
    layer = model.model.layers[1]
    layer.register_forward_hook(lambda module, args, out: seen["residual"].add(out.dtype))
    layer.self_attn.q_norm.register_forward_hook(lambda module, args, out: seen["query"].add(out.dtype))
    batches = tiny_batches()
    outputs = [compute.forward_backward(half, clipped_loss) for half in (batches[:1], batches[1:])]
    gradients = full_gradients(compute)
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    exported = {name: tensor.clone() for bucket in compute.iter_full_weights() for name, tensor in bucket}
    return {
        "seen": seen, "gradients": gradients, "loss": sum(float(each.loss) for each in outputs), "exported": exported,
        "kept": {parameter.dtype for parameter in model.parameters()},
    }  # fmt: skip


def by_hand(tied: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """bfloat16 copies of float32 parameters, whose gradients are summed in float32."""
    exact = tiny_model(tied=tied)
    loss, gradients = 0.0, {name: torch.zeros_like(p) for name, p in exact.named_parameters()}
    for mb in tiny_batches():
        copy = tiny_model(tied=tied).bfloat16()
        copy.model.rotary_emb.inv_freq = exact.model.rotary_emb.inv_freq
        compute = connected("d1")
        compute.parallelize(copy)
        loss += float(compute.forward_backward([mb], clipped_loss).loss)
        for name, parameter in copy.named_parameters():
            gradients[name] += parameter.grad.float()
    return loss, gradients


@pytest.mark.parametrize("tied", [False, True])
def test_on_a_gpu_one_process_computes_with_bf16_parameters_as_many_do(tied: bool) -> None:
    got, (loss, gradients) = fork(1, as_on_a_gpu, tied)[0], by_hand(tied)
    assert got["seen"] == {"residual": {torch.bfloat16}, "query": {torch.bfloat16}}
    assert got["kept"] == {torch.float32}
    assert abs(got["loss"] - loss) < 1e-6
    for name, want in gradients.items():
        torch.testing.assert_close(got["gradients"][name], want, atol=1e-6, rtol=0)
    start = dict(tiny_model(tied=tied).named_parameters())
    assert set(got["exported"]) == set(start)
    assert all(0 < float((tensor - start[name]).abs().max()) < 0.02 for name, tensor in got["exported"].items())
