"""Hand-written log-prob and entropy gradients against autograd, whole and split over a vocabulary-parallel group."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tau2_lightning.strategy import logprobs as module
from tau2_lightning.strategy.logprobs import scatter, token_logprobs
from tests.strategy.distributed import fork


def oracle(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    every = torch.log_softmax(logits.double() / temperature, -1)
    return every.gather(-1, labels[:, None])[:, 0], -(every.exp() * every).sum(-1)


def case(rows: int = 7, vocab: int = 33) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(rows, vocab, generator=generator)
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    return logits, labels, torch.randn(rows, generator=generator), torch.randn(rows, generator=generator)


@pytest.fixture(params=["torch", "triton"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Torch's operations, or the GPU's kernels in Triton's interpreter, in blocks of 16 logits."""
    if request.param == "triton":
        if os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("in a process of its own: test_the_kernels_of_gpus_in_tritons_interpreter")
        from tau2_lightning.strategy import logprob_kernels

        monkeypatch.setattr(logprob_kernels, "_BLOCK", 16)
        monkeypatch.setattr(module, "_fuses", lambda logits: True)
    return str(request.param)


def test_the_kernels_of_gpus_in_tritons_interpreter() -> None:
    """Triton looks for its switch when it is first imported."""
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "triton and not interpreter",
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "11 passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("slice_size", [1 << 25, 40])
def test_values_and_gradients(
    temperature: float, slice_size: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._SLICE, "cpu", slice_size)
    logits, labels, of_logprob, of_entropy = case()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    got, want = token_logprobs(ours, labels, temperature), oracle(theirs, labels, temperature)
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value.double(), expected, atol=2e-6, rtol=1e-6)
    (got[0] * of_logprob + got[1] * of_entropy).sum().backward()
    (want[0] * of_logprob + want[1] * of_entropy).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=5e-6, rtol=1e-5)


def test_huge_logits_do_not_overflow(kernel: str) -> None:
    logprobs, entropy = token_logprobs(torch.tensor([[1e4, 0.0, -1e4]]), torch.tensor([1]))
    assert logprobs.item() == -1e4 and entropy.item() == 0.0


def test_no_selected_position_is_fine(kernel: str) -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    logprobs, _ = token_logprobs(logits, torch.zeros(0, dtype=torch.int64))
    logprobs.sum().backward()
    assert logits.grad is not None and logits.grad.shape == (0, 5)


def test_bf16_logits_give_float32_results(kernel: str) -> None:
    logits, labels, *_ = case()
    logprobs, _ = token_logprobs(logits.bfloat16(), labels)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), oracle(logits.bfloat16(), labels, 1.0)[0], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("used", ["logprobs", "entropy"])
def test_one_of_the_two_gradients_alone(used: str, kernel: str) -> None:
    logits, labels, weight, _ = case()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    index = ["logprobs", "entropy"].index(used)
    (token_logprobs(ours, labels, 0.6)[index] * weight).sum().backward()
    (oracle(theirs, labels, 0.6)[index] * weight).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=5e-6, rtol=1e-5)


def test_columns_that_are_masked_out_count_for_nothing(kernel: str) -> None:
    logits, labels, weight, _ = case()
    logits[:, 5:9] = -torch.inf
    labels = torch.where((labels >= 5) & (labels < 9), 0, labels)
    logits.requires_grad_()
    logprobs, _ = token_logprobs(logits, labels)
    (logprobs * weight).sum().backward()
    kept = torch.cat([logits.detach()[:, :5], logits.detach()[:, 9:]], 1).double()
    want = torch.log_softmax(kept, -1).gather(-1, torch.where(labels >= 9, labels - 4, labels)[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), want, atol=2e-6, rtol=1e-6)
    assert logits.grad is not None and float(logits.grad[:, 5:9].abs().max()) == 0.0


def split_vocabulary() -> tuple[Tensor, Tensor, Tensor]:
    logits, labels, of_logprob, of_entropy = case()
    rows = -(-logits.shape[1] // dist.get_world_size())  # 33 columns over 2 ranks: 17 and 16
    start = rows * dist.get_rank()
    mine = logits[:, start : start + rows].clone().requires_grad_()
    logprobs, entropy = token_logprobs(mine, labels, 0.6, vocab_start=start, group=dist.group.WORLD)
    (logprobs * of_logprob + entropy * of_entropy).sum().backward()
    assert mine.grad is not None
    return logprobs.detach(), entropy.detach(), mine.grad


def test_split_vocabulary_equals_the_whole(kernel: str) -> None:
    logits, labels, of_logprob, of_entropy = case()
    whole = logits.clone().requires_grad_()
    logprobs, entropy = token_logprobs(whole, labels, 0.6)
    (logprobs * of_logprob + entropy * of_entropy).sum().backward()
    ranks = fork(2, split_vocabulary)
    for rank in ranks:
        torch.testing.assert_close(rank[0], logprobs, atol=2e-6, rtol=0)
        torch.testing.assert_close(rank[1], entropy, atol=2e-6, rtol=0)
    assert whole.grad is not None
    torch.testing.assert_close(torch.cat([rank[2] for rank in ranks], 1), whole.grad, atol=5e-6, rtol=1e-5)


def test_scatter_puts_values_at_the_mask() -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert scatter(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]
