"""GRPOModule under a real Trainer and a real policy; only the rollouts are made up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from tau2_lightning.algorithm import GRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.config.schema import OptimizerConfig
from tau2_lightning.forward import BatchForward
from tau2_lightning.module import GRPOModule
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.strategy import ArchonStrategy
from tau2_lightning.trajectory import Group
from tests.fake_service import FakeService, data_with, group, small_config
from tests.sections import section

# A steady learning rate, so that weights move from the first step on.
STEADY: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-5, "warmup_steps": 0, "final_lr_fraction": 1.0}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(tmp_path_factory.mktemp("policy"), ["check the line status. " * 30], vocab_size=512)


def trained(
    policy: Path, folder: Path, *steps: list[Group], algorithm: GRPO | None = None, n_minibatches: int = 1
) -> tuple[list[torch.Tensor], GRPOModule, FakeService]:
    """The weights after a step on each of ``steps``."""
    algorithm, service = algorithm or GRPO(), FakeService(*steps)
    config = small_config(f"train_dataset.batches_per_epoch={len(steps)}")
    given = data_with(service, config, policy, algorithm, folder)
    module = GRPOModule(
        policy, algorithm, section(OptimizerConfig, "actor.optimizer", **STEADY), n_minibatches=n_minibatches
    )
    trainer = L.Trainer(
        strategy=ArchonStrategy("d1p1t1"), accelerator="cpu", devices=1, max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        inference_mode=False, use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, given)
    assert module.policy is not None
    return [parameter.detach().clone() for parameter in module.policy.parameters()], module, service


def test_a_group_in_which_everything_fails_changes_no_weight(policy: Path, tmp_path: Path) -> None:
    """Gradient, momentum and weight decay change nothing; yet the version increases and the run continues."""
    signal, failed = [group(0, [1.0, 0.0, 0.0])], [group(1, [0.0] * 4), group(2, [0.0] * 4)]
    before, _, _ = trained(policy, tmp_path, signal)
    after, module, service = trained(policy, tmp_path, signal, failed)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert module.weights_version == 2 and service.published == [1, 2] and service.ended
    assert module.last_metrics["optim/grad_norm"] == 0.0
    control, _, _ = trained(policy, tmp_path, signal, [group(1, [0.0, 0.0, 0.0, 1.0]), group(2, [0.0] * 4)])
    assert any(not torch.equal(a, b) for a, b in zip(before, control, strict=True))


def test_a_batch_that_lost_all_its_groups_changes_no_weight(policy: Path, tmp_path: Path) -> None:
    signal = [group(0, [1.0, 0.0, 0.0])]
    before, _, _ = trained(policy, tmp_path, signal)
    after, module, _ = trained(policy, tmp_path, signal, [])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert module.weights_version == 2


@dataclass(frozen=True, kw_only=True)
class Watching(GRPO):
    """Keeps what each optimizer step's loss was given, by row."""

    seen: list[dict[str, dict[int, torch.Tensor]]] = field(default_factory=list)

    def loss(self, logprobs: Any, entropy: Any, microbatch: Any) -> Any:
        columns = {"logprobs": logprobs.detach()} | {
            k: microbatch[k] for k in microbatch if k.endswith(("logprobs", "advantages"))
        }
        rows = microbatch["row_ids"].tolist()
        masks = microbatch["loss_mask"]
        self.seen.append(
            {name: {row: values[i][masks[i]].clone() for i, row in enumerate(rows)} for name, values in columns.items()}
        )
        return super().loss(logprobs, entropy, microbatch)


def largest(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> float:
    """Largest difference of two columns over the rows that both have."""
    return max(float((a[row] - b[row]).abs().max()) for row in a.keys() & b.keys())


def test_the_reference_is_the_policy_that_training_started_from(policy: Path, tmp_path: Path) -> None:
    signal = [group(0, [1.0, 0.0, 0.0])]
    watching = Watching(kl_ctl=1e-9)
    weights, module, _ = trained(policy, tmp_path, signal, signal, signal, algorithm=watching)
    first, second, third = watching.seen
    assert largest(first["logprobs"], first["reference_logprobs"]) < 1e-5
    for later in (second, third):
        assert largest(later["reference_logprobs"], first["reference_logprobs"]) == 0
        assert largest(later["logprobs"], later["reference_logprobs"]) > 0.01
    assert module.last_metrics["kl"] > 0
    without, _, _ = trained(policy, tmp_path, signal, signal, signal)
    for kept, plain in zip(weights, without, strict=True):  # the trained weights are restored after each swap
        torch.testing.assert_close(kept, plain, rtol=0, atol=1e-4)


def test_proximal_logprobs_are_of_the_policy_before_the_first_minibatch(policy: Path, tmp_path: Path) -> None:
    watching = Watching(proximal="recompute")
    trained(policy, tmp_path, [group(0, [1.0, 0.0, 0.0, 1.0])], algorithm=watching, n_minibatches=2)
    first, second = watching.seen
    assert not first["logprobs"].keys() & second["logprobs"].keys()
    assert largest(second["logprobs"], second["proximal_logprobs"]) > 0.01, "recomputed after the first step"
    at_once = Watching(proximal="recompute")
    trained(policy, tmp_path, [group(0, [1.0, 0.0, 0.0, 1.0])], algorithm=at_once)
    assert largest(second["proximal_logprobs"], at_once.seen[0]["logprobs"]) < 1e-5


@pytest.mark.parametrize("n_minibatches", [1, 2, 3])
@pytest.mark.parametrize("kl", [{}, {"kl_ctl": 0.1, "kl_in": "reward"}])
def test_the_first_step_on_a_batch_computes_its_own_proximal_logprobs(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_minibatches: int, kl: dict[str, Any]
) -> None:
    """The weights are those of a pass over the whole batch before its first step, and that pass is smaller."""
    scored: list[int] = []
    real = BatchForward._logprobs

    def counted(self: BatchForward, batch: Batch, *args: Any, **kwargs: Any) -> Any:
        if len(batch) != 2:  # the parity guard's rows
            scored.append(len(batch))
        return real(self, batch, *args, **kwargs)

    def before(self: BatchForward, batch: Batch, algorithm: Any, reference: Any, n: int, seed: int = 0) -> list[Batch]:
        if reference is not None:
            batch = self.with_logprobs(batch, "reference_logprobs", reference.active())
        return self.with_logprobs(batch, "proximal_logprobs").minibatches(n, seed)

    steps = [[group(0, [1.0, 0.0, 0.0, 1.0, 0.0, 1.0])], [group(1, [0.0, 1.0, 0.0, 1.0, 0.0, 0.0])]]
    algorithm = GRPO(proximal="recompute", **kl)
    monkeypatch.setattr(BatchForward, "_logprobs", counted)
    ours, _, _ = trained(policy, tmp_path, *steps, algorithm=algorithm, n_minibatches=n_minibatches)
    later = 6 - 6 // n_minibatches
    references = [6] if kl else []
    assert scored == 2 * [*references, *([later] if later else [])]
    monkeypatch.setattr(BatchForward, "minibatches", before)
    theirs, _, _ = trained(policy, tmp_path, *steps, algorithm=algorithm, n_minibatches=n_minibatches)
    largest_difference = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    assert largest_difference < 1e-4, "a step moves weights by 1e-2"
    other, _, _ = trained(policy, tmp_path, *steps, algorithm=GRPO(**kl), n_minibatches=n_minibatches)
    if (
        n_minibatches > 1 or kl
    ):  # with one step on a batch and no KL, nothing but the samplers' log-probs tells them apart
        assert any(not torch.equal(a, b) for a, b in zip(ours, other, strict=True))


def test_every_part_of_a_weight_sync_is_logged(policy: Path, tmp_path: Path) -> None:
    _, module, _ = trained(policy, tmp_path, [group(0, [1.0, 0.0])])
    logged = {name: value for name, value in module.last_metrics.items() if name.startswith("time/sync/")}
    parts = {"gather": 0.1, "write": 0.2, "send": 0.0, "pause": 0.3, "load": 0.4, "resume": 0.6}
    assert logged == {f"time/sync/{part}": seconds for part, seconds in parts.items()}
    assert {"time/broadcast_weights", "sync/logp_difference/max", "optim/lr"} <= module.last_metrics.keys()
    assert module.last_metrics["sync/bytes"] == 1234.0
