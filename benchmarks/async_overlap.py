"""Measures the wall-clock seconds of a training step with asynchronous and with synchronous collection, in one run.

Both train the same tiny untrained policy by GRPO on telecom dialogues. The scripted user takes 0.5 to 2 s for an
answer, as a user model does. Engine (real vLLM), batches and trainer are the same; only
``rollout.max_head_offpolicyness`` differs: 0 against ``--bound``. Steps are timed between weight syncs, without the
first one, and over whole cycles of bound + 1 steps: that many batches start together, so fewer steps would use up a
full queue and look too fast. The program also prints the fractions of time in which the engine has no request and in
which the trainer waits for a batch, the age of the oldest trained token, and the groups that were given up because of
their age.

    python benchmarks/async_overlap.py [--cycles 2] [--bound 2]

The last line is JSON: ``ratios`` (synchronous over asynchronous step time) and their ``aims``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lightning as L

from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.module import GRPOModule
from tau2_lightning.rollout.background import BackgroundLoop
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.run import setup as setup_run
from tau2_lightning.run.algorithm import instantiate_algorithm
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import leave
from tests.e2e.reference_models import MAX_MODEL_LEN, ReferenceModels, engine_settings

LATENCY = (0.5, 2.0)
AIM = 1.8
START_SECONDS = 300.0
REPORTED = ("time/wait_for_batch", "time/forward_backward", "time/broadcast_weights", "idle/engine", "idle/trainer")


class Steps(L.Callback):
    """Records when the weights of each step are in the engine, and the metrics of the step."""

    def __init__(self) -> None:
        self.ended: list[float] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # Only now are the metrics of the previous step complete: its sync came after this callback's hook.
        if batch_idx:
            self._note(pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._note(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ended.append(time.perf_counter())

    def _note(self, module: GRPOModule) -> None:
        self.metrics.append(dict(module.last_metrics))


def train(bound: int, steps: int, pool: EnginePool, policy: Path, folder: Path) -> dict[str, float]:
    """Train with ``bound``; return the seconds of a step and the means of ``REPORTED``."""
    low, high = LATENCY
    words = [
        f"actor.path={policy}", "actor.dtype=float32", "actor.precision=fp32", "actor.optimizer.lr=1e-4",
        "actor.activation_checkpointing=none", "actor.max_tokens_per_mb=8192",
        f"rollout.engine_urls=[{pool.members[0].client.url}]", f"rollout.engine_api_key={pool.settings.api_key}",
        f"rollout.max_head_offpolicyness={bound}", "rollout.filter_groups=false", "rollout.official_check=0",
        "+rollout.workflow._target_=tests.e2e.slow_agent.SlowAgent",
        f"+rollout.workflow.low={low}", f"+rollout.workflow.high={high}",
        "domain=telecom", "econfig.user=scripted", "econfig.max_steps=14", "econfig.policy=none",
        f"gconfig.max_tokens={MAX_MODEL_LEN}", "gconfig.max_new_tokens=24", "gconfig.n_samples=4",
        "train_dataset.batch_size=4", f"train_dataset.batches_per_epoch={steps}",
        "trainer.max_epochs=1", "trainer.progress=off", "trainer.accelerator=cpu", "logger=csv",
        "rollout.collect_timeout=180", f"output_dir={folder}", f"trial_name=bound{bound}",
    ]  # fmt: skip
    config = load_config(words)
    run_folder, record = RunFolder.create(config), Steps()
    setup_run.configure_logging(run_folder)
    algorithm = instantiate_algorithm(config)
    module = GRPOModule.of(config, policy, algorithm)
    trainer = setup_run.build_trainer(config, run_folder)
    trainer.callbacks.append(record)  # type: ignore[attr-defined]
    with Tau2DataModule(config, policy, algorithm, run_dir=run_folder.root) as data:
        trainer.fit(module, data)
    measured = record.metrics[1:]
    figures = {name: statistics.mean(m[name] for m in measured) for name in REPORTED}
    figures["step"] = (record.ended[-1] - record.ended[0]) / (len(record.ended) - 1)
    figures["off_policy/max"] = max(m["off_policy/max"] for m in measured)
    figures["off_policy/dropped"] = sum(m["off_policy/dropped"] for m in measured)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=2, help="measured steps of each run, in units of bound + 1")
    parser.add_argument("--bound", type=int, default=2, help="max_head_offpolicyness of the asynchronous run")
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference, loop = ReferenceModels(folder / "policies"), BackgroundLoop("engine")
        pool = EnginePool(engine_settings(reference, folder / "engine.log"))
        try:
            loop.call(pool.start(), component="engine", doing="starting", timeout=START_SECONDS)
            loop.call(pool.wait_ready(), component="engine", doing="starting", timeout=START_SECONDS)
            for label, bound in (("sync", 0), ("async", arguments.bound)):
                steps = 1 + arguments.cycles * (arguments.bound + 1)
                figures = found[label] = train(bound, steps, pool, reference.folders["A"], folder)
                text = "  ".join(f"{key.split('/', 1)[-1]} {value:.2f}" for key, value in figures.items())
                print(f"{label:5s} (idle fractions: engine, trainer)  {text}", flush=True)
        finally:
            loop.call(pool.stop(), component="engine", doing="stopping", timeout=60.0)
            loop.close()
    speedup = round(found["sync"]["step"] / found["async"]["step"], 2)
    rounded = {label: {key: round(value, 3) for key, value in figures.items()} for label, figures in found.items()}
    print(json.dumps({"ratios": {"async_speedup": speedup}, "aims": {"async_speedup": AIM}, "figures": rounded}))
    return 0


if __name__ == "__main__":
    leave(main())
