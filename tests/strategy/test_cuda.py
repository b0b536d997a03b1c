"""Tests that need a GPU: bfloat16 as FSDP2 computes it, the variable-length kernel, and a fit that resumes.

    pytest -m gpu

Oracles are transformers in float32 on the same GPU (without TF32) and float64 on the CPU. The allowed error of
bfloat16 follows from that of transformers itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tau2_lightning.microbatch import MicroBatch, ModelRows
from tau2_lightning.strategy import attention
from tau2_lightning.strategy.logprobs import token_logprobs
from tau2_lightning.strategy.outputs import TokenOutputs
from tests.strategy.test_packing import separate
from tests.strategy.tiny import connected, full_gradients, tiny_batches, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = allowed


def model(tied: bool = False) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=515, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=64, max_position_embeddings=1024, tie_word_embeddings=tied,
        )
    )  # fmt: skip


def compute_of(net: Any, **options: Any) -> Any:
    compute = connected("d1", device=torch.device("cuda", 0), **options)
    compute.parallelize(net)
    return compute


def batches(*, packed: bool = True) -> list[Any]:
    return tiny_batches(6, longest=400, packed=packed)


def smooth_loss(outputs: TokenOutputs, mb: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted log-probs and entropy, without a clip, at which rounding would decide whether a token has a gradient."""
    loss = -((outputs.logprobs * mb["advantages"] + 0.1 * outputs.entropy) * mb["loss_mask"]).sum() / mb["n_tokens"]
    return loss, {"tokens": mb["loss_mask"].sum()}


def transformers_gradients(dtype: torch.dtype, tied: bool) -> tuple[float, Tensor]:
    """Loss and gradients of transformers' own forward, row by row, summed over micro-batches in float32."""
    from tests.strategy.test_compute import transformers_outputs

    loss, total = 0.0, None
    for mb in batches():
        net = model(tied).to("cuda", dtype)
        on_gpu: Any = {key: value.cuda() for key, value in mb.items() if key != "model"}
        outputs = transformers_outputs(net, on_gpu)
        found = smooth_loss(outputs, on_gpu)[0]
        found.backward()
        flat = torch.cat([p.grad.float().flatten() for p in net.parameters()])
        loss, total = loss + float(found), flat if total is None else total + flat
    assert total is not None
    return loss, total


def ours(tied: bool = False, **options: Any) -> tuple[float, Tensor]:
    compute = compute_of(model(tied), **options)
    loss = float(compute.forward_backward(batches(packed=compute.packs), smooth_loss).loss)
    return loss, torch.cat([gradient.flatten() for gradient in full_gradients(compute).values()])


def off(found: Tensor, want: Tensor) -> float:
    """Relative error, by Euclidean norms."""
    return float((found - want).norm() / want.norm())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_float32_equals_transformers(tied: bool, packing: bool) -> None:
    want, got = transformers_gradients(torch.float32, tied), ours(tied, packing=packing)
    assert abs(got[0] - want[0]) < 1e-5
    assert off(got[1], want[1]) < 1e-5


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_bf16_errs_no_more_than_transformers_does(tied: bool, packing: bool) -> None:
    exact, rounded = transformers_gradients(torch.float32, tied), transformers_gradients(torch.bfloat16, tied)
    got = ours(tied, precision="bf16", packing=packing)
    allowed = off(rounded[1], exact[1])
    assert 1e-4 < off(got[1], exact[1]) < 1.5 * allowed, allowed
    assert abs(got[0] - exact[0]) < 2e-3


def test_packed_rows_use_the_variable_length_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []
    kernel = attention._varlen

    def watched(*args: Any) -> Tensor:
        calls.append(args[0].dtype)
        return kernel(*args)

    monkeypatch.setattr(attention, "_varlen", watched)
    ours(precision="bf16", packing=True)
    assert calls and set(calls) == {torch.bfloat16}


@pytest.mark.parametrize(("width", "window"), [(32, None), (64, None), (128, None), (64, 17)])
def test_variable_length_attention_equals_float32_rows(width: int, window: int | None) -> None:
    torch.manual_seed(0)
    lengths = [1, 33, 128, 7, 260]
    shapes = [(1, heads, sum(lengths), width) for heads in (8, 2, 2)]
    exact = [torch.randn(shape, device="cuda").bfloat16().float().requires_grad_() for shape in shapes]
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    assert attention.has_varlen(rounded[0]) and not attention.has_varlen(exact[0])
    (query, key, value), segments = exact, separate(lengths, torch.device("cuda"))
    want = attention._one_by_one(query, key, value, segments.lengths, width**-0.5, window)
    query, key, value = rounded
    got = attention._varlen(query, key, value, segments, width**-0.5, window)
    weight = torch.randn_like(want)
    (want * weight).sum().backward()
    (got.float() * weight).sum().backward()
    assert off(got.float(), want) < 5e-3
    for a, b in zip(rounded, exact, strict=True):
        assert a.grad is not None and b.grad is not None and off(a.grad.float(), b.grad) < 8e-3
    # Control: a boundary that is moved by one token changes the result.
    moved = separate([1, 34, 127, 7, 260], torch.device("cuda"))
    wrong = attention._varlen(query, key, value, moved, width**-0.5, window)
    assert off(wrong.float(), want) > 0.02


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-5)])
def test_log_probs_of_a_large_vocabulary_equal_float64(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    logits = (4 * torch.randn(1500, 151_936, device="cuda")).to(dtype).requires_grad_()  # several slices
    labels = torch.randint(151_936, (1500,), device="cuda")
    logprobs, entropy = token_logprobs(logits, labels, 0.8)
    weight = torch.randn(1500, device="cuda")
    (logprobs * weight + 0.1 * entropy).sum().backward()
    assert logits.grad is not None
    for rows in torch.arange(1500).split(500):
        rows = rows.cuda()
        z = logits.detach()[rows].double().requires_grad_()
        every = torch.log_softmax(z / 0.8, -1)
        picked, spread = every.gather(-1, labels[rows, None])[:, 0], -(every.exp() * every).sum(-1)
        (picked * weight[rows] + 0.1 * spread).sum().backward()
        assert float((picked - logprobs[rows]).abs().max()) < tolerance
        assert float((spread - entropy[rows]).abs().max()) < tolerance
        assert z.grad is not None
        assert off(logits.grad[rows].double(), z.grad) < (1e-5 if dtype == torch.float32 else 4e-3)


def many_tokens() -> list[Any]:
    """One packed micro-batch of 8,000 tokens or so, so that activations outweigh parameters."""
    lengths = torch.tensor([1000, 900, 800, 700] * 2 + [600, 500])
    real = torch.arange(1000)[None] < lengths[:, None]
    ids = torch.randint(1, 515, real.shape, generator=torch.Generator().manual_seed(2)) * real
    labels, mask = ids.roll(-1, 1), real & (ids % 3 == 0)
    return [
        {
            "model": ModelRows.of(ids, labels, mask, lengths.tolist(), packed=True),
            "input_ids": ids, "labels": labels, "loss_mask": mask, "lengths": lengths,
            "advantages": torch.ones(real.shape), "n_tokens": real.sum().float(),
        }
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointed_layers_give_the_same_gradients_with_less_memory(mode: Any) -> None:
    found = []
    for precision, each in (("fp32", "none"), ("bf16", "none"), ("bf16", mode)):
        compute = compute_of(model().train(), precision=precision, activation_checkpointing=each)
        for _ in range(2):  # the first time also fills workspaces
            compute.model.zero_grad()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            compute.forward_backward(many_tokens(), smooth_loss)
            peak = torch.cuda.max_memory_allocated() - before
        found.append((torch.cat([gradient.flatten() for gradient in full_gradients(compute).values()]), peak))
    exact, plain, checkpointed = found
    assert off(checkpointed[0], exact[0]) < 1.5 * off(plain[0], exact[0])
    assert checkpointed[1] < 0.8 * plain[1]


def test_compiled_layers_give_the_same_gradients() -> None:
    exact, eager, compiled = ours(), ours(precision="bf16"), ours(precision="bf16", compile_blocks=True)
    assert off(compiled[1], eager[1]) > 0
    assert off(compiled[1], exact[1]) < 1.5 * off(eager[1], exact[1])


FIT = """
import sys
import lightning as L, torch
from tests.strategy.test_cuda import batches, model, smooth_loss
from tau2_lightning.optimizer import adamw
from tau2_lightning.strategy import ArchonStrategy
from torch.utils.data import DataLoader

class Module(L.LightningModule):
    automatic_optimization = False
    def configure_model(self):
        if not hasattr(self, "net"):
            self.net = self.trainer.strategy.parallelize(model())
    def configure_optimizers(self):
        return adamw(self.net.parameters(), lr=1e-3)
    def training_step(self, batch, index):
        optimizer, strategy = self.optimizers(), self.trainer.strategy
        optimizer.zero_grad()
        out = strategy.forward_backward(batches(), smooth_loss)
        strategy.clip_grad_norm(1.0)
        optimizer.step()
        print("LOSS", float(out.loss), flush=True)
    def on_train_end(self):
        print("LOSS", float(self.trainer.strategy.forward_backward(batches(), smooth_loss, train=False).loss))

folder, resume = sys.argv[1], sys.argv[2] or None
trainer = L.Trainer(strategy=ArchonStrategy("d1", precision="bf16", async_save=True), accelerator="gpu", devices=1,
                    max_epochs=4 if resume else 2, logger=False, enable_progress_bar=False, default_root_dir=folder,
                    enable_model_summary=False, enable_checkpointing=False)
module = Module()
trainer.fit(module, DataLoader(range(2), batch_size=None), ckpt_path=resume)
trainer.save_checkpoint(folder + "/after.ckpt")
trainer.strategy.teardown()
"""


def losses(folder: Path, resume: str) -> list[float]:
    run = [sys.executable, "-c", FIT, str(folder), resume]
    root = Path(__file__).parents[2]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("LOSS")]


def test_a_fit_on_a_gpu_learns_saves_and_resumes(tmp_path: Path) -> None:
    first = losses(tmp_path, "")
    second = losses(tmp_path, str(tmp_path / "after.ckpt"))
    assert len(first) == len(second) == 5
    assert second[0] == pytest.approx(first[-1], abs=1e-5)  # where the first one ended
    assert second[-1] < second[0] < first[0] - 0.01


def test_tiny_widths_run_too() -> None:
    """Heads of 8, as unit tests use them, are within what the kernels take."""
    compute = compute_of(tiny_model(), precision="bf16")
    assert torch.isfinite(compute.forward_backward(tiny_batches(), smooth_loss).loss)
