"""Measures training on a GPU: the strategy under a Lightning Trainer against the same model in a plain FSDP2 loop.

The models are randomly initialised and have the sizes of Qwen3-0.6B and 1.7B. They compute in bfloat16 from float32
parameters, with 30 % of tokens trained, fused AdamW and clipped gradients. The loops take turns, twice, in one process:

1. Rows of one length (2048), so that no loop pads: tokens/s, model FLOPs utilisation, peak memory.
2. Rows with the lengths of dialogues (log-normal, 300 to 4000). The plain loop pads the rows of a micro-batch, which
   have similar lengths, to the longest; ours packs them. Tokens/s count real tokens.
3. bfloat16 parity: relative errors of gradients and log-probs against float32, ours over the plain loop's.

    python benchmarks/gpu_training.py [--sizes 0.6B 1.7B] [--steps 6] [--compile] [--sides 2]

Model FLOPs are 6 for each matrix weight and token (in the head: each trained token), plus 6 x heads x head width x
length^2 for each layer and row (causal attention). Recomputation is not counted. The last line is JSON: ``ratios``
(ours over the plain loop) and their ``aims``.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tau2_lightning  # noqa: F401, I001  # before torch

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional as F

from lightning_step import StepModule, fit, loss, rows_of
from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.strategy.optimizer import adamw
from tau2_lightning.strategy import ArchonStrategy
from tau2_lightning.strategy.assembly import Options
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.outputs import TokenOutputs
from tests.strategy.tiny import full

TRAINED, WARM_UP, LENGTH, LR = 3, 2, 2048, 1e-5  # of ten tokens; steps; tokens of an even row
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, by datasheet (SXM)
SIZES: dict[str, dict[str, Any]] = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "tie_word_embeddings": True},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "tie_word_embeddings": True},
    # For a trial without a GPU.
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "tie_word_embeddings": True},
}
# Tokens of a micro-batch, such that a model's float32 states and its activations fit into 80 GB.
TOKENS = {"0.6B": 16384, "1.7B": 8192, "tiny": 1024}


def config_of(size: str) -> Any:
    from transformers import Qwen3Config

    small = {"vocab_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    full = {"vocab_size": 151_936, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    return Qwen3Config(
        **(small if size == "tiny" else full), **SIZES[size], max_position_embeddings=8192, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip


def model(size: str, device: torch.device) -> Any:
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(0)
    with device:
        return Qwen3ForCausalLM(config_of(size)).train()


def step_of(size: str, lengths: Sequence[int], *, packed: bool) -> list[MicroBatch]:
    """Return the micro-batches of one optimizer step with rows of these lengths."""
    vocab = config_of(size).vocab_size
    return rows_of(lengths, np.random.default_rng(0), vocab, TOKENS[size], packed=packed, trained=TRAINED)


def even(size: str) -> list[int]:
    length = min(LENGTH, TOKENS[size] // 2)
    return [length] * (2 * TOKENS[size] // length)


def dialogues(size: str) -> list[int]:
    """Return row lengths of about two packed micro-batches."""
    rng, longest = np.random.default_rng(1), TOKENS[size] // 2
    found: list[int] = []
    while sum(found) < 1.9 * TOKENS[size]:
        found.append(int(np.clip(rng.lognormal(7.0, 0.6), 300, min(4000, longest))))
    return found


def flops(size: str, data: Sequence[MicroBatch]) -> float:
    """Return the model FLOPs of a step's forward and backward, counting real tokens only."""
    c = config_of(size)
    heads = c.num_attention_heads * c.head_dim
    weights = c.hidden_size * (2 * heads + 2 * c.num_key_value_heads * c.head_dim + 3 * c.intermediate_size)
    lengths = torch.cat([mb["lengths"] for mb in data]).double()
    trained = sum(float(mb["loss_mask"].sum()) for mb in data)
    layers = c.num_hidden_layers * (weights * float(lengths.sum()) + heads * float((lengths**2).sum()))
    return float(6.0 * (layers + c.hidden_size * c.vocab_size * trained))


class Plain(nn.Module):
    """The model of a careful plain loop: head and cross-entropy at trained positions only."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        hidden = self.net.model(input_ids=ids).last_hidden_state[mask]
        return F.cross_entropy(self.net.lm_head(hidden).float(), labels[mask], reduction="none")


def sharded(net: Any, device: torch.device, *, bf16: bool = True, compiled: bool = False) -> Plain:
    plain, mesh = Plain(net), init_device_mesh(device.type, (1,))
    for layer in net.model.layers if compiled else ():
        layer.compile()
    dtype = torch.bfloat16 if bf16 else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if bf16 else None)
    for module in (*net.model.layers, plain):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    return plain


@dataclass(frozen=True)
class Timed:
    """Seconds of a step (median after warm-up), peak memory in GiB beyond what was allocated before, last loss."""

    seconds: float
    gib: float
    loss: float


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(device: torch.device, run: Callable[[Callable[[float], None]], None]) -> Timed:
    """Measure ``run(done)``, which calls ``done(loss)`` at the end of every step."""
    gc.collect()
    before = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    ends, losses = [], []

    def done(value: float) -> None:
        wait(device)
        ends.append(time.perf_counter())
        losses.append(value)

    run(done)
    steps = [b - a for a, b in pairwise(ends)][WARM_UP - 1 :]
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if device.type == "cuda" else 0.0
    return Timed(statistics.median(steps), peak, losses[-1])


def plain_loop(
    size: str, data: list[MicroBatch], steps: int, device: torch.device, compiled: bool, done: Callable[[float], None]
) -> None:
    net = sharded(model(size, device), device, compiled=compiled)
    optimizer = adamw(net.parameters(), lr=LR)
    for _ in range(steps):
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for mb in data:
            on = {key: mb[key].to(device, non_blocking=True) for key in ("input_ids", "labels", "loss_mask")}
            found = net(on["input_ids"], on["labels"], on["loss_mask"]).sum() / mb["n_tokens"].to(device)
            found.backward()
            total += found.detach()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        done(float(total))


class Done(L.Callback):
    """Reports the loss after every step."""

    def __init__(self, done: Callable[[float], None]) -> None:
        self.done = done

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.done(float(module.last_loss))


def under_lightning(
    size: str, data: list[MicroBatch], steps: int, device: torch.device, compiled: bool, done: Callable[[float], None]
) -> None:
    strategy = ArchonStrategy("d1", precision="bf16", compile_blocks=compiled)
    with tempfile.TemporaryDirectory() as folder:
        fit(StepModule(data, partial(model, size), LR), steps, Done(done), strategy, device.type, folder)


def errors(size: str, device: torch.device) -> dict[str, tuple[float, float]]:
    """Return relative errors of log-probs and gradients against float32, ours and plain, of one micro-batch."""
    data = step_of(size, [min(512, TOKENS[size] // 4)] * 4, packed=True)[:1]
    [mb] = data
    on = {key: mb[key].to(device) for key in ("input_ids", "labels", "loss_mask", "n_tokens")}

    def plain(bf16: bool) -> tuple[Tensor, Tensor]:
        net = sharded(model(size, device), device, bf16=bf16)
        nll = net(on["input_ids"], on["labels"], on["loss_mask"])
        (nll.sum() / on["n_tokens"]).backward()
        return -nll.detach(), torch.cat([full(p.grad).flatten().cpu() for p in net.parameters() if p.grad is not None])

    def ours() -> tuple[Tensor, Tensor]:
        compute = ArchonCompute(ParallelSpec.parse("d1"), Options(precision="bf16"))
        compute.connect(device)
        net = compute.parallelize(model(size, device))
        found: list[Tensor] = []

        def kept(outputs: TokenOutputs, batch: MicroBatch) -> Any:
            found.append(outputs.logprobs[batch["loss_mask"]].detach())
            return loss(outputs, batch)

        compute.forward_backward(data, kept)
        return found[0], torch.cat([full(p.grad).flatten().cpu() for p in net.parameters() if p.grad is not None])

    exact = plain(False)
    out = {}
    for name, index in (("log-probs", 0), ("gradients", 1)):
        mine, theirs = (float((x[index] - exact[index]).norm() / exact[index].norm()) for x in (ours(), plain(True)))
        out[name] = mine, theirs
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["0.6B", "1.7B"], choices=[*SIZES])
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each stretch")
    parser.add_argument("--sides", type=int, default=2, help="stretches of each loop")
    parser.add_argument("--compile", action="store_true", help="compile the layers of both loops")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = next((value for key, value in PEAK.items() if key in name), float("nan"))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    print(f"{name}, torch {torch.__version__}, peak taken as {peak / 1e12:.0f} TFLOP/s")
    ratios: dict[str, float] = {}
    for size in options.sizes:
        torch.backends.cuda.matmul.allow_tf32 = False
        for what, (mine, theirs) in errors(size, device).items():
            print(f"{size}: relative error of bf16 {what}: {mine:.2e} ours, {theirs:.2e} plain")
            ratios[f"{size}: error of {what}"] = round(mine / theirs, 3)
        for kind, lengths in (("even rows", even(size)), ("dialogues", dialogues(size))):
            kind += ", compiled" if options.compile else ""
            packed, padded = step_of(size, lengths, packed=True), step_of(size, lengths, packed=False)
            loops = {"plain": (plain_loop, padded), "ours": (under_lightning, packed)}
            found: dict[str, list[Timed]] = {key: [] for key in loops}
            for side in range(options.sides):
                for key in [*loops] if side % 2 == 0 else [*reversed(loops)]:
                    loop, data = loops[key]
                    steps = options.steps + WARM_UP
                    found[key].append(measured(device, partial(loop, size, data, steps, device, options.compile)))
            tokens, needed = sum(lengths), flops(size, packed)
            for key, timed in found.items():
                seconds = statistics.median(each.seconds for each in timed)
                spread = "/".join(f"{each.seconds * 1e3:.0f}" for each in timed)
                print(
                    f"{size}, {kind}, {key}: {tokens / seconds:,.0f} tokens/s, MFU {needed / seconds / peak:.3f}, "
                    f"{seconds * 1e3:.0f} ms a step ({spread}), peak {timed[0].gib:.1f} GiB, loss {timed[0].loss:.4f}",
                    flush=True,
                )
            plain, ours = (statistics.median(each.seconds for each in timed) for timed in found.values())
            ratios[f"{size}, {kind}: tokens/s, ours / plain"] = round(plain / ours, 3)
    aims = {key: "<= 1.2" if "error" in key else ">= 0.97" for key in ratios}
    print(json.dumps({"ratios": ratios, "aims": aims}))


if __name__ == "__main__":
    main()
