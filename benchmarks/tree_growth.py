"""Measures how a training step over a shared prefix grows with the number of samples and the length of the prompt.

    python benchmarks/tree_growth.py [--rounds 3] [--plot docs/shared_prefixes_growth.svg]

One prompt, and samples of 300 tokens behind it, are trained as a forest: 1 to 32 samples behind 4,096 tokens, and 8
samples behind 1,024 to 16,384 tokens. An extra sample should cost its own tokens only. ``slope`` is the measured cost
of an extra sample (a line through the steps of 1 to 32 samples) over the cost of its own operations, which include the
attention of its tokens to the prompt; an operation costs what it costs in the largest step. 1 is what a forest
promises; a prompt that is computed again for every sample makes it many times as much. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tau2_lightning  # noqa: F401, I001  # before torch, so that its OpenMP threads sleep while they wait

import numpy as np
import torch

from tau2_lightning.batch.plain_rows import scoring_batch
from tau2_lightning.microbatch import MicroBatch
from tree_training import SHAPES, Trainer

VOCABULARY, OWN, PROMPT, AROUND = 1024, 300, 4096, 8
SAMPLES, PROMPTS = (1, 2, 4, 8, 16, 32), (1024, 2048, 4096, 8192, 16384)
SHAPE = SHAPES["small"]


def step_of(samples: int, prompt: int, *, shared: bool = True) -> list[MicroBatch]:
    """One micro-batch of ``samples`` rows behind one prompt, the samples' tokens trained."""
    rng = np.random.default_rng(0)
    opening = rng.integers(0, VOCABULARY, prompt).tolist()
    rows = [[*opening, i, *rng.integers(0, VOCABULARY, OWN - 1).tolist()] for i in range(samples)]
    positions = [list(range(prompt, prompt + OWN))] * samples
    return scoring_batch(rows, positions).microbatches(10**7, packed=True, shared=shared)


def operations(microbatches: list[MicroBatch]) -> float:
    """Multiplications of a forward pass."""
    return sum(SHAPE.operations(mb, VOCABULARY) for mb in microbatches)


def slope(seconds: dict[int, float]) -> float:
    """The cost of an extra sample over that of its own operations."""
    work = {n: operations(step_of(n, PROMPT)) for n in SAMPLES}
    measured = float(np.polyfit(list(seconds), list(seconds.values()), 1)[0])
    last, before = SAMPLES[-1], SAMPLES[-2]
    own = (work[last] - work[before]) / (last - before)
    return measured / (own * seconds[last] / work[last])


def plot(path: str, by_samples: dict[int, float], by_prompt: dict[int, float], packed: dict[int, float]) -> None:
    """Draw both growths, relative to their first point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    first = by_samples[SAMPLES[0]]
    left.plot(list(by_samples), [value / first for value in by_samples.values()], "o-", label="forest")
    left.plot(list(packed), [value / first for value in packed.values()], "s--", label="packed rows")
    left.set(xlabel=f"samples of {OWN} tokens behind {PROMPT:,}", ylabel="step, relative to one sample", yscale="log")
    left.legend()
    right.plot(list(by_prompt), [value / by_prompt[PROMPTS[0]] for value in by_prompt.values()], "o-")
    right.set(xlabel=f"tokens of the prompt of {AROUND} samples", ylabel="step, relative to 1,024", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot")
    options = parser.parse_args()
    trainer = Trainer(SHAPE, VOCABULARY, torch.device("cpu"), bf16=False)
    trainer.step(step_of(1, 1024), train=True)

    def timed(samples: int, prompt: int, *, shared: bool = True) -> float:
        work = step_of(samples, prompt, shared=shared)
        value = median(trainer.step(work, train=True) for _ in range(options.rounds))
        kind = "forest" if shared else "packed"
        print(f"{kind}: {samples:3} samples behind {prompt:6} tokens: {value:.2f} s", flush=True)
        return value

    by_samples = {n: timed(n, PROMPT) for n in SAMPLES}
    by_prompt = {n: timed(AROUND, n) for n in PROMPTS}
    packed = {n: timed(n, PROMPT, shared=False) for n in SAMPLES[:4]}
    if options.plot:
        plot(options.plot, by_samples, by_prompt, packed)
    ratios = {
        "slope": round(slope(by_samples), 3),
        "32 samples over 1": round(by_samples[32] / by_samples[1], 3),
        "operations of 32 over 1": round(operations(step_of(32, PROMPT)) / operations(step_of(1, PROMPT)), 3),
        "packed/forest at 8 samples": round(packed[8] / by_samples[8], 3),
    }
    print(json.dumps({"ratios": ratios, "aims": {"slope": "0.85 to 1.15"}}))


if __name__ == "__main__":
    main()
