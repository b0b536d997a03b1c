"""Measures what computing shared prefixes once saves: one optimizer step on recorded tau2 groups, four ways.

Groups of telecom solo (16 tasks x 8 samples, full policy and 44 tool schemas, Qwen3's tokens) and of retail are trained
with the same model (Qwen3's shape) in one run

a. as one padded row a turn of the agent,
b. as one padded row a dialogue,
c. as packed rows (``actor.enable_tree_training=false``),
d. as a forest (the default),

forward, backward and an AdamW step; as a recomputation of log-probs (forward only); and (``sft``) as a step of
fine-tuning on one demonstration of each task. A step of (a) takes minutes to hours. So of (a), (b) and (c) a few
micro-batches are timed, and the step is their seconds per operation times the operations of all micro-batches. A step
of (d) is timed whole, because its micro-batches share a trunk. ``ideal`` is the ratio of the operations (matrix
products and attention) of (c) and of a forest without any repetition; what (d) repeats counts against it.

    python benchmarks/tree_training.py [--full] [--gpu] [--rounds 1] [--budget 8192] [--domain retail] [--tasks 16]
    python benchmarks/tree_training.py --full --memory     the ratio of peak memory only: minutes instead of an hour

Without ``--full`` the model has 4 layers of 256 (about 5 M parameters) and the step 2 tasks; with it 10 layers of 384
(about 20 M) and 16 tasks. ``--gpu`` takes Qwen3-0.6B's and 1.7B's shapes in bfloat16, with activation checkpointing in
all ways, and adds tokens per second and the share of the device's peak (``--peak`` TFLOP/s) that operations on
different tokens reach. The last line is JSON: ``ratios`` and ``aims`` (for the full model).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tau2_lightning  # noqa: F401, I001  # before torch, so that its OpenMP threads sleep while they wait

import torch
from recorded_groups import SAMPLES, TASKS, Recorded
from transformers import Qwen3Config, Qwen3ForCausalLM

from allocations import peak_bytes
from lightning_step import loss
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.supervised import split_step
from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.policy.dialogues import EncodedDialogue
from tau2_lightning.strategy.assembly import Options
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.optimizer import adamw

DOMAINS = ("telecom_solo", "retail")
AIMS = {
    "telecom_solo a/d": 40.0, "telecom_solo b/d": 6.0, "telecom_solo c/d": 5.0, "telecom_solo of ideal": 0.8,
    "retail c/d": 2.2, "retail of ideal": 0.8, "telecom_solo memory c/d": 1.0, "retail memory c/d": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A Qwen3 model: layers, hidden size, MLP size, heads, key-value heads (of 64 or 128 features)."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head: int = 64

    def config(self, vocabulary: int) -> Qwen3Config:
        """Its configuration, with tied embeddings."""
        return Qwen3Config(
            vocab_size=vocabulary, hidden_size=self.hidden, intermediate_size=self.mlp, head_dim=self.head,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            max_position_embeddings=40960, tie_word_embeddings=True,
        )  # fmt: skip

    def operations(self, mb: MicroBatch, vocabulary: int) -> float:
        """Multiplications of a forward pass: matrix products, attention over pairs that see each other, the head."""
        model = mb["model"]
        width = self.heads * self.head
        products = 2 * self.hidden * width + 2 * self.hidden * self.kv_heads * self.head + 3 * self.hidden * self.mlp
        if model.nodes is None:
            rows, length = model.input_ids.shape
            pairs = rows * length * (length + 1) / 2
        else:
            pairs = sum(
                (n.end - n.start) * (n.end - n.start + 1) / 2 + (n.below - n.end) * (n.end - n.start)
                for n in model.nodes
            )
        tokens = model.input_ids.numel()
        return self.layers * (tokens * products + 2.0 * pairs * width) + len(model.at) * self.hidden * vocabulary


SHAPES = {
    "small": Shape(4, 256, 704, 4, 2),
    "full": Shape(10, 384, 1024, 6, 2),
    "0.6B": Shape(28, 1024, 3072, 16, 8, 128),
    "1.7B": Shape(28, 2048, 6144, 16, 8, 128),
}


def ways(recorded: Recorded, budget: int, weight: float) -> dict[str, list[MicroBatch]]:
    """The micro-batches of one step, each way; ``weight`` is the strategy's ``trunk_weight``."""
    whole = recorded.batch()
    demonstrations = [
        EncodedDialogue(tokens, actions)
        for tokens, actions in zip(recorded.tokens[::SAMPLES], recorded.actions[::SAMPLES], strict=True)
    ]
    return {
        "a": recorded.by_turn().microbatches(budget),
        "b": whole.microbatches(budget),
        "c": whole.microbatches(budget, packed=True),
        "d": whole.microbatches(budget, packed=True, shared=True, trunk_weight=weight),
        "sft c": split_step(demonstrations, budget, packed=True),
        "sft d": split_step(demonstrations, budget, packed=True, shared=True, trunk_weight=weight),
    }


class Trainer:
    """The model under the strategy of one process."""

    def __init__(self, shape: Shape, vocabulary: int, device: torch.device, *, bf16: bool) -> None:
        torch.manual_seed(0)
        options = Options(precision="bf16", activation_checkpointing="full") if bf16 else Options()
        self.compute = ArchonCompute(ParallelSpec(), options)
        self.compute.connect(device)
        self.model = self.compute.parallelize(Qwen3ForCausalLM(shape.config(vocabulary)))
        self.optimizer: Any = adamw(self.model.parameters(), lr=1e-5)
        self.device = device

    def step(self, microbatches: Sequence[MicroBatch], *, train: bool) -> float:
        """Seconds of one call: with ``train`` forward, backward and an optimizer step, else log-probs only."""
        self._wait()
        started = time.perf_counter()
        if train:
            self.compute.forward_backward(microbatches, loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            self.compute.token_outputs(microbatches)
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def timed(
    microbatches: dict[str, list[MicroBatch]], trainer: Trainer, shape: Shape, vocabulary: int, rounds: int
) -> dict[tuple[str, bool], float]:
    """Seconds of a whole step by way, for training and for log-probs: medians over ``rounds``."""
    found: dict[tuple[str, bool], list[float]] = {}
    total = {way: sum(shape.operations(mb, vocabulary) for mb in mbs) for way, mbs in microbatches.items()}
    for turn in range(rounds + 1):
        for train in (True, False):
            for way, mbs in microbatches.items():
                if way.startswith("sft") and not train:
                    continue
                whole = way.endswith("d") and turn > 0
                chosen = mbs if whole else [mbs[(turn * 7 + len(mbs) // 2) % len(mbs)]]
                seconds = trainer.step(chosen, train=train)
                if turn:  # the first is for warming up
                    share = sum(shape.operations(mb, vocabulary) for mb in chosen) / total[way]
                    found.setdefault((way, train), []).append(seconds / share)
    return {key: median(values) for key, values in found.items()}


def peak_mib(trainer: Trainer, microbatches: Sequence[MicroBatch]) -> float:
    """Peak memory of a step on the largest micro-batch, in MiB: on a GPU with the weights, on a CPU without."""
    largest = max(microbatches, key=lambda mb: mb["model"].input_ids.numel())
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)
        trainer.step([largest], train=True)
        return torch.cuda.max_memory_allocated(trainer.device) / 2**20
    return peak_bytes(lambda: trainer.step([largest], train=True)) / 2**20


def ideal(batch: Batch, shape: Shape, vocabulary: int, packed: Sequence[MicroBatch]) -> tuple[float, float]:
    """Operations of packed rows over those of a forest without repetition, and the latter."""
    forest = shape.operations(batch.collate(batch.rows, packed=True, shared=True), vocabulary)
    return sum(shape.operations(mb, vocabulary) for mb in packed) / forest, forest


def measure(name: str, domain: str, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios, and other figures, of one model on one domain."""
    device, shape = torch.device("cuda" if options.gpu else "cpu"), SHAPES[name]
    recorded = Recorded.load(domain, options.tasks)
    # Then packed rows fill their micro-batches, and memory is compared between equally full ones.
    budget = options.budget or max(len(row) for row in recorded.tokens)
    trainer = Trainer(shape, recorded.vocabulary, device, bf16=options.gpu)
    mbs = ways(recorded, budget, trainer.compute.trunk_weight)
    trainer.step([min(mbs["b"], key=lambda mb: mb["model"].input_ids.numel())], train=True)  # the optimizer's states
    memory = {way: peak_mib(trainer, mbs[way]) for way in ("c", "d")}
    if options.memory:
        return {"memory c/d": memory["c"] / memory["d"]}, {f"memory MiB {way}": memory[way] for way in memory}
    batch = recorded.batch()
    best, forest = ideal(batch, shape, recorded.vocabulary, mbs["c"])
    seconds = timed(mbs, trainer, shape, recorded.vocabulary, options.rounds)
    ratios = {f"{way}/d": seconds[way, True] / seconds["d", True] for way in "abc"}
    ratios |= {
        "log-probs c/d": seconds["c", False] / seconds["d", False],
        "sft c/d": seconds["sft c", True] / seconds["sft d", True],
        "of ideal": seconds["c", True] / seconds["d", True] / best,
        "memory c/d": memory["c"] / memory["d"],
    }
    figures = {"ideal": best, "step seconds": seconds["d", True]}
    figures |= {f"micro-batches {way}": len(each) for way, each in mbs.items()}
    if options.gpu:
        unique = batch.sharing()["unique_tokens"]
        figures |= {
            "unique tokens/s": unique / seconds["d", True],
            # A multiplication is two operations; backward makes twice those of forward.
            "of peak": 6 * forest / seconds["d", True] / (options.peak * 1e12),
        }
        figures |= {f"memory MiB {way}": value for way, value in memory.items()}
    return ratios, figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--memory", action="store_true", help="measure peak memory only")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--budget", type=int, help="max_tokens_per_mb; the longest row's length by default")
    parser.add_argument("--domain", choices=DOMAINS, action="append")
    parser.add_argument("--peak", type=float, default=989.0, help="of the GPU in bfloat16, TFLOP/s (H100: 989)")
    parser.add_argument("--tasks", type=int, help="groups of 8 samples: 16 with --full and --gpu, else 2")
    options = parser.parse_args()
    options.tasks = options.tasks or (TASKS if options.full or options.gpu else 2)
    names = ("0.6B", "1.7B") if options.gpu else ("full",) if options.full else ("small",)
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    for name in names:
        for domain in options.domain or DOMAINS:
            label = f"{name} {domain}" if len(names) > 1 else domain
            found = measure(name, domain, options)
            for kept, values in zip((ratios, figures), found, strict=True):
                for key, value in values.items():
                    kept[f"{label} {key}"] = round(value, 3)
                    print(f"{label + ' ' + key:40} {value:.3f}", flush=True)
    aims = {name: aim for name, aim in AIMS.items() if options.full and name in ratios}
    print(json.dumps({"ratios": ratios, "aims": aims, "figures": figures}))


if __name__ == "__main__":
    main()
