"""Measures what the strategy costs and saves: pairs of steps in one run, alternating step by step.

1. A careful training loop by hand against ArchonStrategy d1 under a Lightning Trainer, with the same model, rows and
   optimizer. The strategy computes norms and rotations by `strategy/elementwise.py`, as runs with the tiny policy do
   (``--plain``: without), so the loop is measured with transformers' layers and with the strategy's: the first ratio
   is what a user gains, the second what Lightning and the strategy cost. Ratios are medians over five processes that
   run one after the other, because processes differ by more than the effect.
2. Packed rows against rows padded to the longest of their micro-batch, with the lengths of real episodes.
3. On two pipeline ranks: a kept schedule against one that is rebuilt every step; and ragged packed micro-batches
   against padded ones, both ours (rows of similar length together, each micro-batch padded to its own longest row) and
   as a stock torch pipeline needs them (every micro-batch padded to the longest row of all).

    python benchmarks/parallel_overhead.py [--steps 12] [--processes 5] [--plain]

Wall-clock and CPU seconds are both measured: on a shared machine the wall clock also counts other programs. The last
line is JSON: ``ratios`` (medians of paired steps) and their ``aims``.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tau2_lightning  # noqa: F401, I001  # before torch, so that its OpenMP threads sleep while they wait

import lightning as L
import numpy as np
import torch
from torch.nn import functional as F

from lightning_step import StepModule, fit, loss, rows_of
from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.strategy import ArchonStrategy
from tau2_lightning.strategy.assembly import Options
from tau2_lightning.microbatch import MicroBatch, ModelRows
from tau2_lightning.strategy.attention import attend_within_rows
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.elementwise import use_handwritten
from tests.strategy.distributed import fork

VOCAB, WARM_UP, BUDGET = 4096, 2, 2048
Seconds = tuple[float, float]
AIMS = {
    "Lightning + d1 / careful loop": "<= 1.03",
    "Lightning + d1 / careful loop, CPU seconds": "<= 1.03",
    "Lightning + d1 / careful loop on the same layers": "<= 1.03",
    "Lightning + d1 / careful loop on the same layers, CPU seconds": "<= 1.03",
    "padded / packed": ">= 1.1",
    "padded / packed, CPU seconds": ">= 1.1",
    "p2: rebuilt / kept schedule": ">= 1.0",
    "p2: padded to the longest of all / packed": ">= 1.1",
    "p2: padded / packed": ">= 1.1",
}


@dataclass(frozen=True)
class Paired:
    """Median milliseconds of two kinds of step; median ratio of neighbouring ones, which other load affects alike."""

    first: float
    second: float
    ratio: float
    cpu_ratio: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[Seconds, Seconds]]) -> Paired:
        kept = np.array(pairs[WARM_UP:])  # [n, 2, (wall, cpu)]
        first, second = np.median(kept[:, :, 0], axis=0) * 1e3
        ratio, cpu_ratio = np.median(kept[:, 0] / np.maximum(kept[:, 1], 1e-9), axis=0)
        return cls(float(first), float(second), float(ratio), float(cpu_ratio))


def now() -> Seconds:
    """Return wall-clock and CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


def since(start: Seconds, end: Seconds) -> Seconds:
    return end[0] - start[0], end[1] - start[1]


def model(layers: int = 4) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=384, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def even(rows: int = 16, length: int = 256, count: int = 2) -> list[MicroBatch]:
    """Return micro-batches of rows of one length, 30 % of their tokens trained. The default is about one optimizer step
    of the main job: its batches have 15,000 to 25,000 tokens for two steps, in micro-batches of up to 8192.
    """
    generator = torch.Generator().manual_seed(1)
    out: list[Any] = []
    for _ in range(count):
        ids = torch.randint(0, VOCAB, (rows, length), generator=generator)
        mask = torch.rand(rows, length, generator=generator) < 0.3
        labels = ids.roll(-1, 1)
        tokens = {"input_ids": ids, "labels": labels, "loss_mask": mask}
        total = torch.tensor(float(count * rows * length))
        out.append(
            {"model": ModelRows.of(ids, labels, mask, [length] * rows, packed=False), **tokens, "n_tokens": total}
        )
    return out


def ragged(packed: bool, budget: int, multiple: int, trained: int, rows: int = 24) -> list[MicroBatch]:
    """Return the same rows each time: 40 to 500 tokens, log-normal like dialogues."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.0, 0.6, rows), 40, 500).astype(int).tolist()
    return rows_of(lengths, rng, VOCAB, budget, packed=packed, multiple=multiple, trained=trained)


def careful_step(net: Any, optimizer: torch.optim.Optimizer, data: Sequence[MicroBatch]) -> None:
    """Make one step of a careful loop: head at trained positions only, cross-entropy, clip, step."""
    optimizer.zero_grad()
    for mb in data:
        hidden = net.model(input_ids=mb["input_ids"], use_cache=False).last_hidden_state[mb["loss_mask"]]
        nll = F.cross_entropy(net.lm_head(hidden).float(), mb["labels"][mb["loss_mask"]], reduction="sum")
        (nll / mb["n_tokens"]).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()


class Alternate(L.Callback):
    """Makes one step of each kind by hand after every Lightning step; they take turns in being first. A Lightning step
    lasts from their end to its own last hook.
    """

    def __init__(self, by_hand: Sequence[Callable[[], None]]) -> None:
        self.by_hand, self.since = by_hand, now()
        self.pairs: list[list[tuple[Seconds, Seconds]]] = [[] for _ in by_hand]

    def on_train_batch_end(self, *_: Any) -> None:
        lightning = since(self.since, now())
        kinds = list(enumerate(self.by_hand))
        for kind, step in kinds if len(self.pairs[0]) % 2 else reversed(kinds):
            start = now()
            step()
            self.pairs[kind].append((lightning, since(start, now())))
        self.since = now()


def by_hand(own_layers: bool, handwritten: bool) -> tuple[Any, torch.optim.Optimizer]:
    net = model()
    if own_layers:
        layers = list(net.model.layers)
        attend_within_rows(net.config, layers, "self_attn", None)
        if handwritten:
            use_handwritten(net, layers, "self_attn")
    return net, torch.optim.AdamW(net.parameters(), lr=1e-4)


def under_lightning(steps: int, handwritten: bool) -> list[Paired]:
    """Lightning + d1 against the careful loop on transformers' layers, and on the strategy's."""
    data = even()
    alternate = Alternate([partial(careful_step, *by_hand(own, handwritten), data) for own in (False, True)])
    with tempfile.TemporaryDirectory() as folder:
        module = StepModule(data, lambda device: model())
        strategy = ArchonStrategy("d1", handwritten_elementwise=handwritten)
        fit(module, steps + WARM_UP, alternate, strategy, "cpu", folder)
    return [Paired.of(pairs) for pairs in alternate.pairs]


def in_processes(count: int, steps: int, handwritten: bool) -> dict[str, Paired]:
    """``under_lightning`` in ``count`` fresh processes in turn; prints what each found and returns the medians."""
    found: list[list[Paired]] = []
    for _ in range(count):
        words = [sys.executable, __file__, "--steps", str(steps), "--processes", "0"]
        words += [] if handwritten else ["--plain"]
        out = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=300.0).stdout
        found.append([Paired(**pair) for pair in json.loads(out.splitlines()[-1])])
    medians = {}
    for kind, pairs in zip(("careful loop", "careful loop on the same layers"), zip(*found, strict=True), strict=True):
        each = ", ".join(f"{pair.ratio:.3f} (CPU {pair.cpu_ratio:.3f})" for pair in pairs)
        print(f"Lightning + d1 / {kind}, process by process: {each}", flush=True)
        keys = [field.name for field in fields(Paired)]
        medians[f"Lightning + d1 / {kind}"] = Paired(*(median(getattr(pair, key) for pair in pairs) for key in keys))
    return medians


def paired(first: Callable[[], object], second: Callable[[], object], steps: int) -> Paired:
    """Run both in turn, ``steps`` times after a warm-up."""
    pairs = []
    for _ in range(steps + WARM_UP):
        start = now()
        first()
        middle = now()
        second()
        pairs.append((since(start, middle), since(middle, now())))
    return Paired.of(pairs)


def compute_of(layout: str, packing: bool) -> ArchonCompute:
    compute = ArchonCompute(ParallelSpec.parse(layout), Options(packing=packing))
    compute.connect(torch.device("cpu"))
    compute.parallelize(model())
    return compute


def stretched(data: Sequence[MicroBatch]) -> list[MicroBatch]:
    """Return the same rows with every micro-batch padded to the longest row of all."""
    width = max(mb["input_ids"].shape[1] for mb in data)
    out: list[Any] = []
    for mb in data:
        rows = mb["input_ids"].shape
        loss_view: dict[str, Any] = {key: value for key, value in mb.items() if key != "model"}
        wide = {k: F.pad(v, (0, width - rows[1])) if v.shape[:2] == rows else v for k, v in loss_view.items()}
        shape = wide["input_ids"].shape
        tokens = wide["input_ids"], wide["labels"], wide["loss_mask"]
        out.append({**wide, "model": ModelRows.of(*tokens, [shape[1]] * shape[0], packed=False)})
    return out


def packed_against_padded(layout: str, steps: int, *, uniform: bool = False, trained: int = 10) -> Paired:
    """Measure a step with padded rows (``uniform``: all to one length) against one with packed rows."""
    work = []
    for packing in (False, True):
        compute = compute_of(layout, packing)
        data = ragged(packing, BUDGET, compute.spec.p, trained)
        data = stretched(data) if uniform and not packing else data
        work.append(lambda compute=compute, data=data: compute.forward_backward(data, loss))
    return paired(work[0], work[1], steps)


def two_ranks(steps: int) -> dict[str, Paired]:
    compute, data = compute_of("p2", True), even(1, 128, 4)
    pipeline = compute.assembly.pipeline
    assert pipeline is not None

    def rebuilt() -> None:
        pipeline._cache.clear()
        compute.forward_backward(data, loss)

    schedule = paired(rebuilt, lambda: compute.forward_backward(data, loss), 3 * steps)
    return {
        "schedule": schedule,
        "packing": packed_against_padded("p2", steps),
        "packing, a few trained": packed_against_padded("p2", steps, trained=3),
        "uniform": packed_against_padded("p2", steps, uniform=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="pairs of steps")
    parser.add_argument("--processes", type=int, default=5, help="for the first pairs; 0: print one process's as JSON")
    parser.add_argument("--plain", action="store_true", help="first pairs with transformers' norms and rotations")
    options = parser.parse_args()
    steps = options.steps
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if not options.processes:
        print(json.dumps([asdict(pair) for pair in under_lightning(steps, not options.plain)]))
        return
    ranks = fork(2, two_ranks, steps, timeout=400.0)[1]
    found = {
        **in_processes(options.processes, steps + 4, not options.plain),
        "padded / packed": packed_against_padded("d1", steps),
        "p2: rebuilt / kept schedule": ranks["schedule"],
        "p2: padded to the longest of all / packed": ranks["uniform"],
        "p2: padded / packed": ranks["packing"],
        "p2: padded / packed, 30% of tokens trained": ranks["packing, a few trained"],
    }
    ratios: dict[str, float] = {}
    for name, pair in found.items():
        print(f"{name}: {pair.first:.1f} / {pair.second:.1f} ms a step, {pair.ratio:.3f}; CPU {pair.cpu_ratio:.3f}")
        ratios[name] = round(pair.ratio, 3)
        if not name.startswith("p2"):  # whether a waiting rank uses CPU depends on gloo
            ratios[f"{name}, CPU seconds"] = round(pair.cpu_ratio, 3)
    print(json.dumps({"ratios": ratios, "aims": AIMS}))


if __name__ == "__main__":
    main()
