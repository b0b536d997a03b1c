"""With the same seed, real dialogues, vLLM and training give the same bits twice, and faults change only counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tau2_lightning.batch.batch import Batch
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.environment import load_tasks
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.module import GRPOModule
from tau2_lightning.rollout.collect.collector import Collection, CollectPlan
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.service import RolloutService
from tau2_lightning.run import setup as setup_run
from tau2_lightning.run.algorithm import instantiate_algorithm
from tau2_lightning.run.compose import load_config
from tests.e2e.reference_models import ReferenceModels

pytestmark = pytest.mark.e2e

STEPS, GROUPS, SAMPLES = 2, 3, 4


@pytest.fixture
def config(engine_pool: EnginePool, reference: ReferenceModels, tmp_path: Path) -> Any:
    """Makes a configuration of the session's engine and the agent that is named."""

    def make(agent: dict[str, object], *overrides: str) -> RunConfig:
        return load_config([
            f"actor.path={reference.folders['A']}", "actor.dtype=float32", "actor.precision=fp32",
            "actor.activation_checkpointing=none", "actor.optimizer.lr=1e-3", "actor.optimizer.warmup_steps=0",
            f"rollout.engine_urls=[{engine_pool.members[0].client.url}]",
            f"rollout.engine_api_key={engine_pool.settings.api_key}",
            *(f"+rollout.workflow.{key}={value}" for key, value in agent.items()),
            "domain=telecom", "econfig.user=scripted", "econfig.max_steps=14", "econfig.policy=none",
            "gconfig.max_tokens=4000", "gconfig.max_new_tokens=24", f"gconfig.n_samples={SAMPLES}",
            f"train_dataset.batch_size={GROUPS}", f"train_dataset.batches_per_epoch={STEPS}",
            "trainer.max_epochs=1", "trainer.progress=off", "trainer.accelerator=cpu", "logger=csv",
            "rollout.collect_timeout=120", f"output_dir={tmp_path}", *overrides,
        ])  # fmt: skip

    return make


def trained(config: RunConfig) -> tuple[list[Batch], dict[str, torch.Tensor]]:
    """The batches that were trained on, and the weights at the end."""
    folder, policy = RunFolder.create(config), Path(str(config.actor.path))
    algorithm, batches = instantiate_algorithm(config), list[Batch]()

    class Recording(GRPOModule):
        def training_step(self, batch: Batch, batch_idx: int) -> None:
            batches.append(batch)
            super().training_step(batch, batch_idx)

    module = Recording(policy, algorithm, config.actor.optimizer, n_minibatches=2)
    trainer = setup_run.build_trainer(config, folder)
    with Tau2DataModule(config, policy, algorithm, run_dir=folder.root) as data:
        trainer.fit(module, data)
    assert module.policy is not None
    return batches, {name: value.detach().clone() for name, value in module.policy.state_dict().items()}


def differences(a: list[Batch], b: list[Batch]) -> dict[str, int]:
    """In how many rows two runs differ: in tokens, in rewards (by their advantages), in log-probs."""
    count = {"rows": 0, "tokens": 0, "advantages": 0, "logprobs": 0}
    for one, other in zip(a, b, strict=True):
        count["rows"] += abs(len(one) - len(other))
        for row, twin in zip(one.rows, other.rows, strict=False):
            count["tokens"] += not np.array_equal(one.tokens(row), other.tokens(twin))
            count["advantages"] += not np.array_equal(row.advantages, twin.advantages)
            count["logprobs"] += not np.array_equal(row.behaviour_logprobs, twin.behaviour_logprobs)
    return count


def test_the_same_seed_gives_the_same_rewards_and_weights_to_the_bit(config: Any) -> None:
    """The agents wait differently each time, so that the engine never batches the same requests together."""
    slow = {"_target_": "tests.e2e.slow_agent.SlowAgent", "low": 0.0, "high": 0.15}
    (batches, weights), (again, same_weights) = (trained(config(slow, f"trial_name=t{i}")) for i in range(2))
    assert [len(batch) for batch in batches] == [GROUPS * SAMPLES] * STEPS, "too few groups with signal for this test"
    assert differences(batches, again) == {"rows": 0, "tokens": 0, "advantages": 0, "logprobs": 0}
    assert all(torch.equal(value, same_weights[name]) for name, value in weights.items())
    one_step = ("seed=2", "trial_name=other", "train_dataset.batches_per_epoch=1")
    others, _ = trained(config(slow, *one_step))
    assert differences(batches[:1], others)["tokens"] == len(batches[0]), "another seed must give other tokens"


def test_a_fault_in_a_fifth_of_the_episodes_changes_counts_not_rewards(config: Any, tmp_path: Path) -> None:
    """The connection breaks in the middle of real dialogues. A retried episode is the same as without the fault;
    without a retry it is left out, and the rewards of the others are unchanged to the bit."""

    def collected(name: str, rate: float, times: int, retries: int) -> tuple[Collection, int]:
        agent = {"_target_": "tests.e2e.slow_agent.UnluckyAgent", "rate": rate, "times": times}
        c = config(agent, f"rollout.retries={retries}", f"trial_name={name}")
        service = RolloutService(c, Path(str(c.actor.path)), run_dir=tmp_path / name)
        tasks = iter(load_tasks("telecom", "train", solo_mode=False))
        try:
            service.start()
            plan = CollectPlan(n_groups=10, n_samples=8, filter_groups=False)
            return service.collect(tasks, plan), service.take_retried().total()
        finally:
            service.close()

    def rewards(collection: Collection) -> dict[tuple[str, int], float]:
        rollouts = [rollout for group in collection.all_groups for rollout in group.rollouts]
        return {(rollout.group_id, rollout.sample): rollout.reward for rollout in rollouts}

    calm, failed = collected("calm", 0.0, 0, retries=1)
    assert failed == 0 and not calm.excluded and len(rewards(calm)) == 80

    retried, failed = collected("retried", 0.2, 1, retries=1)
    assert 8 <= failed <= 24 and not retried.excluded
    assert rewards(retried) == rewards(calm), "a retried episode has another reward"

    excluded, failed = collected("excluded", 0.2, 9, retries=0)
    left = rewards(excluded)
    assert failed == excluded.excluded.total() == 80 - len(left) >= 8
    assert set(excluded.excluded) == {"proxy:connection", "proxy:http_503"}
    assert left == {key: rewards(calm)[key] for key in left}, "a fault changed the reward of another episode"
    # If faults counted as zeros, as they do elsewhere, they would reduce the mean by a fifth.
    mean = np.mean(list(left.values()))
    error = np.std(list(left.values())) / np.sqrt(len(left))
    assert abs(mean - np.mean(list(rewards(calm).values()))) < 2 * error < mean
