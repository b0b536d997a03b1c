"""Measures what staleness costs in quality: held-out pass^1 after synchronous and asynchronous training, in one run.

The embedded policy (warm-started on demonstrations, cached) is trained twice on telecom by the same GRPO with the same
number of steps, batches and samples: once synchronously (``rollout.max_head_offpolicyness`` 0), and once with
collection during training, with tokens of weights up to ``--bound`` versions old. The start and both results play all
held-out tasks with the same seeds. The difference is taken task by task, with a 95 % interval over tasks.

    python benchmarks/async_quality.py [--steps 8] [--bound 2] [key=value ...]

The last line is JSON: ``ratios`` (asynchronous pass^1 over synchronous) and their ``aims``. The aim is the lower end of
the interval of the difference: a smaller loss is noise.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L

from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.evaluation.evaluation import Evaluation
from tau2_lightning.evaluation.intervals import student_t_quantile
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.module import GRPOModule
from tau2_lightning.rollout.background import BackgroundLoop
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engines import engine_settings
from tau2_lightning.run import setup as setup_run
from tau2_lightning.run.algorithm import instantiate_algorithm
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import leave
from tau2_lightning.warm_start.make import warm_start_policy

START_SECONDS = 300.0


class Staleness(L.Callback):
    """Records the age of the oldest trained token of each batch."""

    def __init__(self) -> None:
        self.oldest: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.oldest.append(pl_module.last_metrics.get("off_policy/max", 0.0))


def run(
    words: list[str], policy: Path, pool: EnginePool, folder: Path, bound: int, steps: int
) -> tuple[list[Evaluation], float, float]:
    """Return evaluations before and after ``steps`` steps, training seconds, and the mean age of the oldest tokens."""
    config = load_config(
        [
            *words,
            f"rollout.engine_urls=[{pool.members[0].client.url}]",
            f"rollout.engine_api_key={pool.settings.api_key}",
            f"rollout.max_head_offpolicyness={bound}",
            f"train_dataset.batches_per_epoch={steps}",
            "trainer.max_epochs=1",
            f"output_dir={folder}",
            f"trial_name=bound{bound}",
        ]
    )
    run_folder, staleness = RunFolder.create(config), Staleness()
    setup_run.configure_logging(run_folder)
    algorithm = instantiate_algorithm(config)
    module = GRPOModule.of(config, policy, algorithm)
    trainer = setup_run.build_trainer(config, run_folder)
    trainer.callbacks.append(staleness)  # type: ignore[attr-defined]
    with Tau2DataModule(config, policy, algorithm, run_dir=run_folder.root) as data:
        if not bound:
            trainer.validate(module, data, verbose=False)
        started = time.perf_counter()
        trainer.fit(module, data)
        seconds = time.perf_counter() - started
        trainer.validate(module, data, verbose=False)
        return data.evaluations, seconds, statistics.mean(staleness.oldest)


def by_task(evaluation: Evaluation) -> dict[str, float]:
    """Return the share of solved trials of each task."""
    solved: dict[str, list[bool]] = defaultdict(list)
    for outcome in evaluation.outcomes:
        solved[outcome.task_id].append(outcome.reward >= 1.0)
    return {task: statistics.mean(trials) for task, trials in solved.items()}


def difference(one: Evaluation, other: Evaluation) -> tuple[float, float]:
    """Return the mean over tasks of ``one`` minus ``other``, and the half-width of its 95 % interval."""
    a, b = by_task(one), by_task(other)
    values = [a[task] - b[task] for task in sorted(a.keys() & b.keys())]
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), error * student_t_quantile(0.975, len(values) - 1)


def show(**evaluations: Evaluation) -> None:
    """Print one line for each evaluation."""
    for label, evaluation in evaluations.items():
        estimate = evaluation.summary.pass_hat[1]
        text = f"pass^1 {estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
        episodes = evaluation.summary.episodes
        print(f"{label:6s} {text} of {estimate.tasks} held-out tasks, {episodes} episodes", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--bound", type=int, default=2, help="max_head_offpolicyness of the asynchronous run")
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides of both runs")
    arguments = parser.parse_args()
    words = [
        "domain=telecom", "train_dataset.batch_size=8", "valid_dataset.num_trials=2", "rollout.official_check=0",
        "trainer.progress=off", "logger=csv", *arguments.words,
    ]  # fmt: skip
    config = load_config(words)
    policy = Path(config.actor.path) if config.actor.path else warm_start_policy(config)
    with tempfile.TemporaryDirectory() as name:
        folder, loop = Path(name), BackgroundLoop("engine")
        pool = EnginePool(engine_settings(config, policy, folder / "engine.log"))
        try:
            loop.call(pool.start(), component="engine", doing="starting", timeout=START_SECONDS)
            loop.call(pool.wait_ready(), component="engine", doing="starting", timeout=START_SECONDS)
            (start, sync), sync_seconds, _ = run(words, policy, pool, folder, 0, arguments.steps)
            show(start=start, sync=sync)
            (ahead,), async_seconds, age = run(words, policy, pool, folder, arguments.bound, arguments.steps)
            show(**{"async": ahead})
        finally:
            loop.call(pool.stop(), component="engine", doing="stopping", timeout=60.0)
            loop.close()
    found = {"start": start, "sync": sync, "async": ahead}
    delta, half = difference(ahead, sync)
    learnt, learnt_half = difference(sync, start)
    print(f"async - sync {delta:+.3f} +- {half:.3f}; sync - start {learnt:+.3f} +- {learnt_half:.3f}")
    print(f"training seconds: sync {sync_seconds:.0f}, async {async_seconds:.0f}; oldest tokens {age:.1f} versions")
    values = {label: round(evaluation.summary.pass_hat[1].value, 3) for label, evaluation in found.items()}
    least = round(1 - half / max(values["sync"], 1e-9), 3)
    ratios = {"async_over_sync_pass1": round(values["async"] / max(values["sync"], 1e-9), 3)}
    print(json.dumps({"ratios": ratios, "aims": {"async_over_sync_pass1": least}, "pass1": values}))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "offline")
    leave(main())
