"""AdamW with fewer bytes: torch's own steps in float32, close ones in bfloat16 and 8 bits, whole checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tau2_lightning.errors import ConfigError
from tau2_lightning.strategy import lean_adamw
from tau2_lightning.strategy.checkpoint import load
from tau2_lightning.strategy.lean_adamw import LeanAdamW
from tau2_lightning.strategy.moments import Moment, stochastically_rounded
from tau2_lightning.strategy.optimizer import adamw
from tau2_lightning.strategy.saving import CheckpointSaver
from tests.strategy.distributed import fork
from tests.strategy.tiny import clipped_loss, connected, full, share, tiny_batches, tiny_model

SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in [(96, 512), (31,), (4, 40, 256)]]


def descend(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 30) -> None:
    """Noisy descent to zero: gradients of very different sizes."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = (parameter.detach() + 0.3 * noise) * torch.logspace(-3, 0, parameter.shape[-1])
        optimizer.step()


def trained(**settings: Any) -> list[torch.Tensor]:
    parameters = weights()
    descend(adamw(parameters, **SETTINGS, **settings), parameters)
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("piece", [1 << 22, 700])
def test_float32_moments_in_the_hosts_memory_give_torchs_weights_bit_for_bit(piece: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(lean_adamw, "PIECE", piece)
    plain, lean = weights(), weights()
    descend(torch.optim.AdamW(plain, foreach=False, **SETTINGS), plain)
    descend(LeanAdamW(lean, kept="float32", offload=True, **SETTINGS), lean)
    assert all(torch.equal(a, b) for a, b in zip(plain, lean, strict=True))


@pytest.mark.parametrize(("kind", "within"), [("adam_bf16", 0.02), ("adam_8bit", 0.1)])
def test_fewer_bytes_give_nearly_the_same_way(kind: str, within: float) -> None:
    """The distance to AdamW's weights, relative to the way from the start."""
    exact, found = trained(), trained(kind=kind)
    for start, a, b in zip(weights(), exact, found, strict=True):
        assert float((a - b).norm() / (a - start).norm()) < within
    assert not torch.equal(exact[0], found[0])  # the moments were kept in fewer bytes


@pytest.mark.parametrize(("kind", "each"), [("adam_bf16", 4.0), ("adam_8bit", 2.0 + 8 / 256)])
def test_the_bytes_of_moments(kind: str, each: float) -> None:
    parameters = weights()
    optimizer = adamw(parameters, kind=kind, **SETTINGS)
    descend(optimizer, parameters, steps=1)
    slots = [value for key, value in optimizer.state[parameters[0]].items() if key != "step"]
    assert sum(slot.nbytes for slot in slots) == each * parameters[0].numel()
    small = {key: value.dtype for key, value in optimizer.state[parameters[1]].items()}
    assert small["exp_avg"] == (torch.bfloat16 if kind == "adam_bf16" else torch.float32)


def test_a_second_moment_of_eight_bits_never_becomes_zero() -> None:
    """One large gradient in a block would otherwise make the updates of its small neighbours huge."""
    parameter = nn.Parameter(torch.zeros(16, 256))
    optimizer = LeanAdamW([parameter], kept="8bit", lr=1.0, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0)
    for small in (1e-5, 0.0):
        parameter.grad = torch.full((16, 256), small)
        parameter.grad[:, 0] = 100.0
        before = parameter.detach().clone()
        optimizer.step()
        assert float((parameter.detach() - before).abs().max()) < 3.0


def test_rounding_at_random_keeps_the_mean() -> None:
    x = torch.full((200_000,), 1.0 + 2.0**-10)  # an eighth of the way to the next bfloat16
    rounded = stochastically_rounded(x, 7).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 2.0**-7}
    assert float(rounded.mean()) == pytest.approx(1.0 + 2.0**-10, abs=5e-5)
    assert torch.equal(rounded, stochastically_rounded(x, 7).float())  # the seed decides
    assert torch.equal(stochastically_rounded(-x, 7), -stochastically_rounded(x, 7))


@pytest.mark.parametrize("kind", ["adam_bf16", "adam_8bit"])
def test_a_resumed_run_takes_the_same_steps(kind: str, tmp_path: Path) -> None:
    parameters = weights()
    names = {id(parameter): f"w{index}" for index, parameter in enumerate(parameters)}
    optimizer = adamw(parameters, kind=kind, **SETTINGS)
    descend(optimizer, parameters, steps=5)
    tensors = {f"w{index}": parameter for index, parameter in enumerate(parameters)}
    CheckpointSaver().save(tmp_path / "a.ckpt", tensors, [optimizer], names, {})
    again = weights()
    other = adamw(again, kind=kind, **SETTINGS)
    named = {id(parameter): f"w{index}" for index, parameter in enumerate(again)}
    load(tmp_path / "a.ckpt", {f"w{i}": p for i, p in enumerate(again)}, [other], named, {})
    descend(optimizer, parameters, steps=3)
    descend(other, again, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(parameters, again, strict=True))
    wrong = adamw(again, **SETTINGS)
    with pytest.raises(ConfigError, match=r"moments in (bfloat16|8bit), but the optimizer here in float32"):
        load(tmp_path / "a.ckpt", {}, [wrong], named, {})


def test_moments_that_move_to_the_host_continue_those_of_the_device(tmp_path: Path) -> None:
    parameters, again = weights(), weights()
    optimizer = torch.optim.AdamW(parameters, foreach=False, **SETTINGS)
    descend(optimizer, parameters, steps=3)
    names = {id(parameter): f"w{index}" for index, parameter in enumerate(parameters)}
    CheckpointSaver().save(tmp_path / "a.ckpt", {f"w{i}": p for i, p in enumerate(parameters)}, [optimizer], names, {})
    other = LeanAdamW(again, kept="float32", offload=True, **SETTINGS)
    named = {id(parameter): f"w{index}" for index, parameter in enumerate(again)}
    load(tmp_path / "a.ckpt", {f"w{i}": p for i, p in enumerate(again)}, [other], named, {})
    descend(optimizer, parameters, steps=2)
    descend(other, again, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(parameters, again, strict=True))


def sharded(text: str, kind: str, folder: str, resume: bool) -> dict[str, Any]:
    """Three steps of a small model under a layout, or one more after a checkpoint; its full weights."""
    compute = connected(text)
    model = compute.parallelize(tiny_model(vocab=1024)).train()
    optimizer = adamw(model.parameters(), kind=kind, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = dict(model.named_parameters())
    path = Path(folder) / "a.ckpt"
    if resume:
        load(path, tensors, [optimizer], names, {})
    for _ in range(1 if resume else 3):
        optimizer.zero_grad()
        compute.forward_backward(share(tiny_batches(), compute), clipped_loss)
        optimizer.step()
    if not resume:
        CheckpointSaver().save(path, tensors, [optimizer], names, {})
    placed = {slot for state in optimizer.state.values() for slot in state.values() if isinstance(slot, DTensor)}
    assert not text.startswith("d2") or placed
    return {name: full(parameter) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", ["adam_bf16", "adam_8bit"])
def test_a_sharded_optimizer_takes_the_steps_of_one_process_and_any_layout_reads_it(kind: str, tmp_path: Path) -> None:
    (one,) = fork(1, sharded, "d1", kind, str(tmp_path / "one"), False)
    two = fork(2, sharded, "d2", kind, str(tmp_path / "two"), False)
    start = dict(tiny_model(vocab=1024).named_parameters())
    for name, weight in one.items():
        way = float((weight - start[name]).norm())
        # bfloat16 rounds at random by the place in a rank's part, so only the expectation is equal.
        assert float((two[0][name] - weight).norm()) <= (0.02 if kind == "adam_bf16" else 1e-3) * way + 1e-6, name
    (again,) = fork(1, sharded, "d1", kind, str(tmp_path / "two"), True)
    assert any(not torch.equal(again[name], two[0][name]) for name in again)


def test_short_rows_and_vectors_stay_in_float32() -> None:
    assert Moment.of(torch.zeros(9000), "8bit") == Moment(torch.float32)
    assert Moment.of(torch.zeros(500, 31), "8bit") == Moment(torch.float32)
    assert Moment.of(torch.zeros(500, 96), "8bit") == Moment(torch.uint8, 32)
    assert Moment.of(torch.zeros(2, 256), "8bit") == Moment(torch.float32)
