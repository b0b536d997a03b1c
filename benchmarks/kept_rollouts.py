"""Measures what keeping every episode costs: training steps with and without it, in turns, in one run.

Groups of recorded tau2 episodes (retail: full policies, all tool schemas, Qwen3's tokens; `recorded_groups.py`) are
credited by GRPO and trained on by a model of Qwen3's shape, forward, backward and an AdamW step. Every other step also
hands its episodes, with messages of as much text as their tokens stand for, and the trainer's log-probs to the writer.

Three figures, each a share of a step without keeping. Other load changes the first two little:

- ``hidden``: what the trainer's thread spends on handing over. The writer's thread works while the next step runs.
- ``work``: processor seconds of the writer's thread over those of a step: what it takes where no core is free.
- ``worst``: the whole step, when it waits until its file is on the disk, over a step without. It contains the noise of
  the machine.

The step has no rollout and no weight sync, which make real steps longer, and the model is small: a real one takes
hundreds of times as long for the same tokens, and the writer does not.

    python benchmarks/kept_rollouts.py [--rounds 6] [--tasks 4] [--model small|full] [--folder FOLDER]

The last line is JSON: ``ratios``, the ``aim``, and ``figures`` (seconds, bytes on the disk and in memory).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tau2_lightning  # noqa: F401, I001  # before torch, so that its OpenMP threads sleep while they wait

import numpy as np
import torch
from recorded_groups import SAMPLES, Recorded
from tree_training import SHAPES

from tau2_lightning.algorithm import GRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.config.kept import KeptBound
from tau2_lightning.rollout.collect.collector import Collection
from tau2_lightning.rollout_files.names import FOLDER
from tau2_lightning.rollout_files.played import PlayedBatch
from tau2_lightning.rollout_files.writer import RolloutWriter
from tau2_lightning.segments import Segment
from tau2_lightning.strategy.assembly import Options
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.optimizer import adamw
from tau2_lightning.trajectory import Group, Rollout, Trajectory, Turn
from transformers import Qwen3ForCausalLM

AIM = 0.02
CHARACTERS = 4  # of text for a token


def groups_of(recorded: Recorded) -> list[Group]:
    """The recorded rows as groups whose samples succeed in turns, each agent's run of tokens as a turn."""
    rng = np.random.default_rng(0)
    words = [
        "".join(chr(97 + int(c)) for c in rng.integers(0, 26, CHARACTERS - 1)) + " " for _ in range(recorded.vocabulary)
    ]
    found = []
    for number in range(0, len(recorded.tokens), SAMPLES):
        rollouts = []
        for sample in range(SAMPLES):
            tokens, mask = recorded.tokens[number + sample], recorded.actions[number + sample]
            edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))).reshape(-1, 2).tolist()
            messages: list[dict[str, Any]] = []
            turns, at = [], 0
            for start, end in edges:
                said = ("".join(words[token] for token in tokens[a:b].tolist()) for a, b in ((at, start), (start, end)))
                messages += [
                    {"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)
                ]
                turns.append(Turn(start, end, message=len(messages) - 1, engine_s=1.0))
                at = end
            logprobs = np.where(mask, -rng.random(len(tokens)), 0).astype(np.float32)
            versions = np.where(mask, 0, -1).astype(np.int32)
            row = Trajectory(Segment.of(tokens), logprobs, versions, tuple(turns), 0, tuple(messages))
            rollouts.append(Rollout(f"task {number}", str(number), sample, float(sample % 2), (row,)))
        found.append(Group(str(number), f"task {number}", tuple(rollouts), domain="retail"))
    return found


class Step:
    """A training step on ``groups``, with or without keeping them."""

    def __init__(self, groups: Sequence[Group], shape: str, vocabulary: int, root: Path) -> None:
        torch.manual_seed(0)
        self.groups, self.algorithm, self.root = groups, GRPO(), root
        self.compute = ArchonCompute(ParallelSpec(), Options())
        self.compute.connect(torch.device("cpu"))
        model = self.compute.parallelize(Qwen3ForCausalLM(SHAPES[shape].config(vocabulary)))
        self.optimizer: Any = adamw(model.parameters(), lr=1e-5)
        self.writer = RolloutWriter(root, KeptBound(), self.algorithm)
        self.handing_over = self.cpu = 0.0
        self.seen: list[Any] = []

    def run(self, number: int, *, keep: bool) -> float:
        """Seconds of one step; with ``keep`` until its episodes are on the disk."""
        self.handing_over = 0.0
        self.compute.watch = (lambda outputs, mb: self.seen.append((mb, outputs.logprobs.detach()))) if keep else None
        started, cpu = time.perf_counter(), time.process_time()
        batch = Batch.from_groups(self.groups, self.algorithm, version=number)
        if keep:
            began = time.perf_counter()
            self.writer.write(
                PlayedBatch(number, number, Collection(tuple(self.groups)), (), batch, {"retail": "train"})
            )
            self.handing_over += time.perf_counter() - began
        self.compute.forward_backward(batch.microbatches(8192, packed=True, shared=True), self._loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if keep:
            began = time.perf_counter()
            scores = {}
            for mb, logprobs in self.seen:
                lines, masks = logprobs.float().cpu().numpy(), mb["loss_mask"].numpy()
                for row_id, mask, line in zip(mb["row_ids"].tolist(), masks, lines, strict=True):
                    scores[row_id] = line[mask]
            self.seen.clear()
            self.writer.write_scores(number, scores)
            self.handing_over += time.perf_counter() - began
            self.writer.close()
        self.cpu = time.process_time() - cpu
        return time.perf_counter() - started

    def _loss(self, outputs: Any, mb: Any) -> Any:
        return self.algorithm.loss(outputs.logprobs, outputs.entropy, mb)


def measured_work(step: Step) -> list[float]:
    """Processor seconds of the writer's thread, one for each time it ends."""
    seconds: list[float] = []
    loop = step.writer._loop

    def timed_loop() -> None:
        began = time.thread_time()
        loop()
        seconds.append(time.thread_time() - began)

    step.writer._loop = timed_loop  # type: ignore[method-assign]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--model", choices=[name for name in SHAPES if not name.endswith("B")], default="small")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    recorded = Recorded.load("retail", options.tasks)
    groups = groups_of(recorded)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        step = Step(groups, options.model, recorded.vocabulary, Path(folder))
        work = measured_work(step)
        without, kept, handed, cpu = [], [], [], []
        for number in range(options.rounds + 1):
            plain_s, plain_cpu = step.run(2 * number, keep=False), step.cpu
            kept_s = step.run(2 * number + 1, keep=True)
            if number:  # the first is for warming up
                without.append(plain_s)
                cpu.append(plain_cpu)
                kept.append(kept_s)
                handed.append(step.handing_over)
        assert step.writer.lost == 0
        files = sorted((Path(folder) / FOLDER).glob("*.parquet"))
        size = sum(path.stat().st_size for path in files) / (options.rounds + 1)
    plain = median(without)
    ratios = {
        "hidden": median(handed) / plain,
        "work": median(work[1:]) / median(cpu),
        "worst": median(k - w for k, w in zip(kept, without, strict=True)) / plain,
    }
    tokens = sum(len(row) for row in recorded.tokens)
    raw = sum(len(row) * (4 + 4 + 4 + 1 + 4 + CHARACTERS) for row in recorded.tokens)
    for name, value in ratios.items():
        print(f"{name:7} {100 * value:6.2f} % of a step of {plain:.2f} s ({tokens} tokens)")
    figures = {
        "step_s": plain, "step_cpu_s": median(cpu),
        "handing_over_s": median(handed), "writer_cpu_s": median(work[1:]), "bytes_a_step": size,
        "raw_bytes_a_step": raw, "tokens": tokens,
    }  # fmt: skip
    print(json.dumps({"ratios": ratios, "aim": AIM, "figures": figures}))


if __name__ == "__main__":
    main()
