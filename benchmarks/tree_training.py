"""Measures what computing shared prefixes once saves: one optimizer step on recorded tau2 groups, four ways.

Groups of telecom solo (16 tasks x 8 samples, full policy and 44 tool schemas, Qwen3's tokens) and of retail are trained
with the same model (Qwen3's shape) in one run

a. as one padded row a turn of the agent,
b. as one padded row a dialogue,
c. as packed rows (``actor.enable_tree_training=false``),
d. as a forest (the default),

forward, backward and an AdamW step, and as a recomputation of log-probs (forward only). A step of (a) takes minutes to
hours, so a few micro-batches of each way are timed, in turns, and its step is their seconds per operation times the
operations of all its micro-batches. ``ideal`` is the ratio of operations (matrix products and attention) of (c) and of
a forest without any repetition; what micro-batches repeat of a prefix counts against (d).

    python benchmarks/tree_training.py [--full] [--gpu] [--rounds 1] [--budget 16384]

Without ``--full`` the model has 4 layers of 256 (about 5 M parameters), with it 10 of 384 (about 20 M). ``--gpu`` takes
Qwen3-0.6B's and 1.7B's shapes in bfloat16. The last line is JSON: ``ratios`` and ``aims`` (for the full model).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
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
from recorded_groups import Recorded
from transformers import Qwen3Config, Qwen3ForCausalLM

from lightning_step import loss
from tau2_lightning.batch.batch import Batch
from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.strategy.assembly import Options
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.optimizer import adamw

WAYS = ("a", "b", "c", "d")
AIMS = {
    "telecom_solo a/d": 40.0, "telecom_solo b/d": 6.0, "telecom_solo c/d": 5.0, "telecom_solo of ideal": 0.8,
    "retail c/d": 2.2, "retail of ideal": 0.8,
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


def ways(recorded: Recorded, budget: int) -> dict[str, list[MicroBatch]]:
    """The micro-batches of one step, each way."""
    whole = recorded.batch()
    return {
        "a": recorded.by_turn().microbatches(budget),
        "b": whole.microbatches(budget),
        "c": whole.microbatches(budget, packed=True),
        "d": whole.microbatches(budget, packed=True, shared=True),
    }


class Trainer:
    """The model under the strategy of one process."""

    def __init__(self, shape: Shape, vocabulary: int, device: torch.device, *, bf16: bool) -> None:
        torch.manual_seed(0)
        self.compute = ArchonCompute(ParallelSpec(), Options(precision="bf16" if bf16 else "fp32"))
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
) -> Any:
    """Estimated seconds of a whole step by way, for training and for log-probs: medians over ``rounds``."""
    found: dict[tuple[str, bool], list[float]] = {}
    total = {way: sum(shape.operations(mb, vocabulary) for mb in mbs) for way, mbs in microbatches.items()}
    for turn in range(rounds + 1):
        for train in (True, False):
            for way in WAYS:
                mbs = microbatches[way]
                chosen = [mbs[(turn * 7 + len(mbs) // 2) % len(mbs)]]
                seconds = trainer.step(chosen, train=train)
                if turn:  # the first is for warming up
                    rate = seconds / shape.operations(chosen[0], vocabulary)
                    found.setdefault((way, train), []).append(rate * total[way])
    return {key: median(values) for key, values in found.items()}


def peak_mib(shape: Shape, vocabulary: int, microbatch: MicroBatch, device: torch.device, bf16: bool) -> float:
    """Peak memory of one training step on one micro-batch, in MiB: of a fresh process on a CPU, of the device else."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        Trainer(shape, vocabulary, device, bf16=bf16).step([microbatch], train=True)
        return torch.cuda.max_memory_allocated(device) / 2**20
    context = multiprocessing.get_context("fork")
    answers: Any = context.Queue()

    def child() -> None:
        Trainer(shape, vocabulary, device, bf16=bf16).step([microbatch], train=True)
        answers.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    process = context.Process(target=child)
    process.start()
    value = float(answers.get(timeout=900))
    process.join(60)
    return value


def ideal(batch: Batch, shape: Shape, vocabulary: int, packed: Sequence[MicroBatch]) -> float:
    """Operations of packed rows over those of a forest without repetition."""
    forest = batch.collate(batch.rows, packed=True, shared=True)
    return sum(shape.operations(mb, vocabulary) for mb in packed) / shape.operations(forest, vocabulary)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--budget", type=int, default=16384)
    options = parser.parse_args()
    device = torch.device("cuda" if options.gpu else "cpu")
    names = ("0.6B", "1.7B") if options.gpu else ("full",) if options.full else ("small",)
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    for name in names:
        shape = SHAPES[name]
        for domain in ("telecom_solo", "retail"):
            label = f"{name} {domain}" if len(names) > 1 else domain
            recorded = Recorded.load(domain)
            mbs = ways(recorded, options.budget)
            best = ideal(recorded.batch(), shape, recorded.vocabulary, mbs["c"])
            memory = {
                way: peak_mib(shape, recorded.vocabulary, max(mbs[way], key=lambda mb: mb["model"].input_ids.numel()),
                              device, options.gpu)
                for way in ("c", "d")
            }  # fmt: skip
            trainer = Trainer(shape, recorded.vocabulary, device, bf16=options.gpu)
            seconds = timed(mbs, trainer, shape, recorded.vocabulary, options.rounds)
            for way in "abc":
                ratios[f"{label} {way}/d"] = round(seconds[way, True] / seconds["d", True], 2)
            ratios[f"{label} log-probs c/d"] = round(seconds["c", False] / seconds["d", False], 2)
            ratios[f"{label} of ideal"] = round(seconds["c", True] / seconds["d", True] / best, 3)
            ratios[f"{label} memory c/d"] = round(memory["c"] / memory["d"], 2)
            figures |= {f"{label} ideal": round(best, 2), f"{label} step seconds": round(seconds["d", True], 1)}
            figures |= {f"{label} micro-batches {way}": len(mbs[way]) for way in WAYS}
            for key in [key for key in (*ratios, *figures) if key.startswith(label)]:
                print(f"{key:40} {ratios.get(key, figures.get(key))}", flush=True)
    print(json.dumps({"ratios": ratios, "aims": AIMS if options.full else {}, "figures": figures}))


if __name__ == "__main__":
    main()
