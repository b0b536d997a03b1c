"""Trains and measures one seed of ``learning.py`` in its own process.

    python benchmarks/learning_seed.py [--splits test,train] TARGET.json [key=value ...]

It uses the parts of the main job (`run.setup`, module, datamodule, Trainer) and validates more than a run usually does:
before and after training on the held-out test tasks and on tasks of the `train` split, sampled and greedy, and between
epochs once on the first split, for the figure. No setting is chosen by these validations. The JSON keeps every finished
episode without its dialogue.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.evaluation.evaluation import Evaluation
from tau2_lightning.evaluation.plan import ValidationPlan
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.module import GRPOModule
from tau2_lightning.policy.loading import load_tokenizer
from tau2_lightning.run import setup as setup_run
from tau2_lightning.run.algorithm import instantiate_algorithm
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.policy import prepare_policy
from tau2_lightning.telemetry.phases import PhaseClock

# The columns of the run's metrics file that the report and the figure use.
METRICS = (
    "reward/mean", "transfer_rate/unasked", "invalid_format_rate", "groups/kept", "groups/collected",
    "entropy/all/mean", "tokens/trained", "num_tokens", "mismatch_kl/all/mean",
    "sampling/sampling_logp_difference/max", "sync/logp_difference/max", "optim/grad_norm", "optim/lr",
    "time/rollout", "time/forward_backward", "time/broadcast_weights",
)  # fmt: skip


class Measured(Tau2DataModule):
    """Validates on ``splits``, sampled and greedy; between epochs only on the first split, sampled."""

    thorough = True
    splits: tuple[str, ...] = ()

    def val_dataloader(self) -> DataLoader[ValidationPlan]:
        trials = self.config.valid_dataset.num_trials
        if self.thorough:
            plans = [self._plan(split, trials) for split in self.splits]
            plans += [self._plan(split, 1, temperature=0.0) for split in self.splits]
        else:
            plans = [self._plan(self.splits[0], 1)]
        return DataLoader(plans, batch_size=None)  # type: ignore[arg-type]

    def _plan(self, split: str, trials: int, **sampling: float) -> ValidationPlan:
        c = self.config
        return ValidationPlan(c.econfig.domain, split, self.tasks(split)[: c.valid_dataset.limit], trials, sampling)


def run(config: RunConfig, splits: Sequence[str]) -> dict[str, Any]:
    """Train one policy; return all that the report needs as plain JSON values."""
    started = time.perf_counter()
    folder, clock = RunFolder.create(config), PhaseClock()
    setup_run.configure_logging(folder)
    algorithm = instantiate_algorithm(config)
    policy = prepare_policy(config, clock, folder, None)
    warm_start = time.perf_counter() - started
    module = GRPOModule.of(config, policy, algorithm)
    trainer = setup_run.build_trainer(config, folder)
    with Measured(config, policy, algorithm, run_dir=folder.root, clock=clock) as data:
        data.splits = tuple(splits)
        trainer.validate(module, data, verbose=False)
        data.thorough = False
        began = time.perf_counter()
        trainer.fit(module, data)
        training = time.perf_counter() - began
        data.thorough = True
        trainer.validate(module, data, verbose=False)
        evaluations = [_plain(evaluation) for evaluation in data.evaluations]
        module.archon.save_pretrained(folder.policy, load_tokenizer(policy))
    settings = config.warm_start
    return {
        "seed": config.seed,
        "config": config.model_dump(mode="json", exclude={"econfig": {"user_llm_api_key"}}),
        "weak_skills": list(settings.weak_skills),
        "steps_in_all": config.trainer.max_epochs * config.train_dataset.batches_per_epoch,
        "evaluations": evaluations,
        "steps": _steps(folder.root / "metrics" / "metrics.csv"),
        "seconds": {**clock.seconds},
        "wall": {
            "warm start": warm_start,
            "training": training,
            "all": time.perf_counter() - started,
        },
        "run_folder": str(folder.root),
    }


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    episodes = [{**asdict(outcome), "simulation": {}} for outcome in evaluation.outcomes]
    return {
        "step": evaluation.weights_version,
        "split": evaluation.split,
        "greedy": evaluation.greedy,
        "excluded": dict(evaluation.summary.excluded),
        "sampled_tokens": evaluation.sampled_tokens,
        "episodes": episodes,
    }


def _steps(file: Path) -> list[dict[str, float]]:
    """Return the run's metrics, one row a training step. Lightning writes the sync's metrics as separate rows."""
    rows: dict[int, dict[str, float]] = {}
    with file.open() as lines:
        for line in csv.DictReader(lines):
            found = {name: float(line[name]) for name in METRICS if line.get(name)}
            if found:
                rows.setdefault(int(line["step"]), {}).update(found)
    return [{"step": step, **row} for step, row in sorted(rows.items()) if "reward/mean" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", default="test,train", help="where to measure before and after, with commas between")
    parser.add_argument("target", type=Path)
    parser.add_argument("words", nargs="*", help="overrides of the configuration")
    arguments = parser.parse_args()
    found = run(load_config(arguments.words), arguments.splits.split(","))
    arguments.target.write_text(json.dumps(found))


if __name__ == "__main__":
    from tau2_lightning.run.exit import leave

    main()
    leave(0)
