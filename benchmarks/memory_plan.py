"""Compares the memory that a plan names with the peak that training reaches, each in a process of its own on the CPU.

Three randomly initialised Qwen3 models take two optimizer steps of two micro-batches each, under the strategy with
one rank in float32: without activation checkpointing, with it, and the largest also with moments in fewer bytes. The
peak is the kernel's own (VmHWM of /proc/self/status, reset after the imports and a small warm-up), minus what the
process held then. The plan is `strategy.memory.memory_of_stages` of the same model's configuration.

    python benchmarks/memory_plan.py [--tokens 1024] [--sizes 5M 20M 60M]

The last line is JSON: ``ratios`` (planned over measured) and their ``aims``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tau2_lightning  # noqa: F401, I001  # before torch, so that its OpenMP threads sleep while they wait

import torch

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.microbatch import MicroBatch, ModelRows
from tau2_lightning.strategy.assembly import Options
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.memory import Demand, memory_of_stages
from tau2_lightning.strategy.moments import FORMATS
from tau2_lightning.strategy.optimizer import adamw
from tau2_lightning.strategy.outputs import TokenOutputs

# Hidden size, layers, vocabulary; the MLP is three times as wide, heads have 32 features, half as many keys as queries.
SIZES = {"5M": (256, 5, 4096), "20M": (384, 10, 8192), "60M": (640, 10, 16384)}
LENGTH, TRAINED, STEPS, TIMEOUT = 512, 0.3, 2, 600.0
MIB = 2.0**20


@dataclass(frozen=True)
class Case:
    """What one process trains."""

    size: str
    checkpointing: str
    optimizer: str = "adam"
    tokens: int = 1024

    @property
    def name(self) -> str:
        kind = "" if self.optimizer == "adam" else f", {self.optimizer}"
        return f"{self.size}, checkpointing {self.checkpointing}{kind}"


def configuration(size: str) -> Any:
    from transformers import Qwen3Config

    hidden, layers, vocabulary = SIZES[size]
    heads = hidden // 32
    return Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=32, max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )  # fmt: skip


def microbatch(tokens: int, vocabulary: int, seed: int) -> MicroBatch:
    """Packed rows of one length, of which `TRAINED` of the tokens are trained."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, tokens // LENGTH)
    length = min(LENGTH, tokens)
    ids = torch.randint(1, vocabulary, (rows, length), generator=generator)
    mask = torch.rand(rows, length, generator=generator) < TRAINED
    mask[:, -1] = False
    labels = ids.roll(-1, 1)
    made: Any = {
        "model": ModelRows.of(ids, labels, mask, [length] * rows, packed=True),
        "input_ids": ids, "labels": labels, "loss_mask": mask, "n_tokens": mask.sum().float(),
    }  # fmt: skip
    return made  # type: ignore[no-any-return]


def loss(outputs: TokenOutputs, mb: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return -(outputs.logprobs * mb["loss_mask"]).sum() / mb["n_tokens"], {}


def train(config: Any, case: Case) -> None:
    from transformers import Qwen3ForCausalLM

    compute = ArchonCompute(ParallelSpec(), Options(activation_checkpointing=case.checkpointing))  # type: ignore[arg-type]
    compute.connect(torch.device("cpu"))
    model = compute.parallelize(Qwen3ForCausalLM(config)).train()
    optimizer = adamw(model.parameters(), kind=case.optimizer, lr=1e-4)
    for step in range(STEPS):
        optimizer.zero_grad()
        batches = [microbatch(case.tokens, config.vocab_size, 2 * step + index) for index in range(2)]
        compute.forward_backward(batches, loss)
        compute.clip_grad_norm(1.0)
        optimizer.step()


def status(name: str) -> float:
    """A size in /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024.0 * int(line.split()[1])


def measure(case: Case) -> tuple[float, float]:
    """Planned and measured bytes, in this process."""
    small = configuration("5M")
    small.num_hidden_layers = 1
    train(small, Case("5M", case.checkpointing, case.optimizer, tokens=64))
    config = configuration(case.size)
    demand = Demand(
        precision="fp32", activation_checkpointing=case.checkpointing, max_tokens_per_mb=case.tokens,
        moments=FORMATS[case.optimizer], on_cpu=True,
    )  # fmt: skip
    (planned,) = memory_of_stages(config, ParallelSpec(), demand)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    train(config, case)
    return float(planned.total), status("VmHWM") - before


def in_a_process(case: Case) -> tuple[float, float]:
    """`measure` in a child that inherits the imports and nothing that was computed."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(measure(case)))
    child.start()
    sender.close()
    if not receiver.poll(TIMEOUT):
        child.kill()
        raise TimeoutError(f"{case.name}: no result within {TIMEOUT:.0f} s")
    planned, measured = receiver.recv()  # EOFError where the child failed: its traceback is on the screen
    child.join()
    return planned, measured


def give_back_at_once() -> None:
    """Let malloc return large tensors to the system when they are freed: the peak is of tensors and not of the heap."""
    libc = ctypes.CDLL(None)
    for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        libc.mallopt(option, 1 << 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a micro-batch")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    given = parser.parse_args()
    give_back_at_once()
    cases = [Case(size, mode, tokens=given.tokens) for size in given.sizes for mode in ("none", "full")]
    cases += [Case(given.sizes[-1], "full", kind, given.tokens) for kind in ("adam_bf16", "adam_8bit")]
    ratios: dict[str, float] = {}
    for case in cases:
        planned, measured = in_a_process(case)
        ratios[case.name] = round(planned / measured, 3)
        print(
            f"{case.name}: planned {planned / MIB:.0f} MiB, measured {measured / MIB:.0f} MiB, {ratios[case.name]:.3f}"
        )
        sys.stdout.flush()
    print(json.dumps({"ratios": ratios, "aims": dict.fromkeys(ratios, ".85 to 1.15")}))


if __name__ == "__main__":
    main()
