"""The smallest run that plays, trains, syncs and validates: overrides for tests of how runs are launched."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.e2e.reference_models import MAX_MODEL_LEN, ReferenceModels


def small_run(reference: ReferenceModels, folder: Path, *, epochs: int) -> list[str]:
    """One step an epoch on tau2's mock domain, on CPU, in ``folder``/e2e/<trial_name>."""
    return [
        f"actor.path={reference.folders['A']}",
        "actor=tiny",
        "domain=mock",
        "econfig.policy=ticket",
        "econfig.max_steps=6",
        f"output_dir={folder}",
        "experiment_name=e2e",
        f"gconfig.max_tokens={MAX_MODEL_LEN}",
        "gconfig.max_new_tokens=16",
        "gconfig.n_samples=2",
        "train_dataset.batch_size=2",
        "train_dataset.batches_per_epoch=1",
        "actor.ppo_n_minibatches=1",
        "valid_dataset.limit=2",
        "valid_dataset.num_trials=1",
        "rollout.filter_groups=false",
        "algorithm.reward_bias=-0.5",
        "algorithm.mean_level=none",
        "algorithm.std_level=none",
        f"trainer.max_epochs={epochs}",
        "trainer.validate_before=false",
        "trainer.accelerator=cpu",
        "trainer.progress=plain",
        "logger=csv",
    ]


def steps(run: Path) -> list[int]:
    """The training steps that the run logged, over all its starts."""
    with (run / "metrics" / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("loss/mean")]
