"""Play real episodes with the real engine and write their batches: tests/data/rollouts-*.safetensors.

Run from the project's root: python -m tools.record_rollouts FOLDER [overrides ...]. The overrides are those of
`python -m tau2_lightning.train`; the files in tests/data came from the warm-started tiny policy:

    python -m tools.record_rollouts tests/data domain=telecom train_dataset.batch_size=4 gconfig.n_samples=6
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tau2_lightning.batch.batch import Batch
from tau2_lightning.environment import load_tasks
from tau2_lightning.environment.sampler import TaskSampler
from tau2_lightning.rollout.collect.collector import CollectPlan
from tau2_lightning.rollout.service import RolloutService
from tau2_lightning.run.algorithm import instantiate_algorithm
from tau2_lightning.run.compose import load_config
from tau2_lightning.warm_start.make import warm_start_policy

BATCHES = 2


def main(folder: Path, overrides: list[str]) -> None:
    config = load_config(overrides)
    policy = Path(config.actor.path) if config.actor.path else warm_start_policy(config)
    algorithm = instantiate_algorithm(config)
    tasks = load_tasks(config.econfig.domain, config.train_dataset.split, solo_mode=bool(config.econfig.solo_mode))
    sampler = TaskSampler(tasks, seed=config.seed)
    plan = CollectPlan(
        n_groups=config.train_dataset.batch_size,
        n_samples=config.gconfig.n_samples,
        filter_groups=config.rollout.filter_groups,
        max_refill=config.rollout.max_refill_groups,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        service = RolloutService(config, policy, run_dir=Path(scratch))
        service.start()
        try:
            for number in range(BATCHES):
                groups = service.collect(sampler, plan).groups
                batch = Batch.from_groups(groups, algorithm, version=0)
                path = folder / f"rollouts-{number}.safetensors"
                path.write_bytes(batch.to_bytes())
                rewards = " ".join(f"{sum(group.rewards) / len(group.rewards):.2f}" for group in groups)
                tokens = sum(len(row) for row in batch.rows)
                print(f"{path}: {len(batch)} rows, {tokens} tokens, mean rewards {rewards}")
        finally:
            service.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
