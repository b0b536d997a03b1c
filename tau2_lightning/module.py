"""GRPOModule: the GRPO update, weight sync and validation of one policy, as a LightningModule."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from tau2_lightning.algorithm import PolicyGradient, merge
from tau2_lightning.batch.batch import Batch
from tau2_lightning.callbacks.weight_sync import WeightSync
from tau2_lightning.config.schema import OptimizerConfig, RunConfig
from tau2_lightning.forward import BatchForward
from tau2_lightning.joining import join
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.strategy.learning_rate import as_configured, planned_schedule
from tau2_lightning.strategy.optimizer import configured_adamw
from tau2_lightning.strategy.reference import ReferencePolicy
from tau2_lightning.telemetry.finite import FiniteLog, SkippedSteps
from tau2_lightning.telemetry.run_length import planned_batches, shift_of
from tau2_lightning.telemetry.step_metrics import loss_metrics, update_metrics

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from torch.optim.lr_scheduler import LambdaLR, LRScheduler

    from tau2_lightning.datamodule import Tau2DataModule
    from tau2_lightning.evaluation.plan import ValidationPlan
    from tau2_lightning.strategy import ArchonStrategy
    from tau2_lightning.strategy.outputs import TokenOutputs


class GRPOModule(FiniteLog):
    """A policy under GRPO (or another ``algorithm``), optimised by hand under an ``ArchonStrategy``.

    ``policy`` is a Hugging Face folder. A training batch makes at most ``n_minibatches`` optimizer steps (one without
    signal is left out); these are what the Trainer's ``global_step`` and ``max_steps`` count. Micro-batches hold at
    most ``max_tokens_per_mb`` tokens. ``temperature`` is the rollouts' temperature; both must be equal.

    Callbacks may read ``weights_version``, ``last_metrics`` and ``last_evaluation`` (see ``callbacks.seams``).
    """

    def __init__(
        self,
        policy: str | Path,
        algorithm: PolicyGradient,
        optimizer: OptimizerConfig,
        *,
        n_minibatches: int = 1,
        max_tokens_per_mb: int = 8192,
        temperature: float = 1.0,
        max_skipped_steps: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy_path, self.algorithm, self.optimizer_config = str(policy), algorithm, optimizer
        self.n_minibatches, self.max_tokens_per_mb, self.temperature = n_minibatches, max_tokens_per_mb, temperature
        self.policy: torch.nn.Module | None = None
        self.reference: ReferencePolicy | None = None
        self.weight_sync, self.skipped = WeightSync(), SkippedSteps(max_skipped_steps)
        self.weights_version = self._shift = 0
        self.last_metrics: dict[str, float] = {}
        self.last_evaluation: dict[str, Any] = {}

    @classmethod
    def of(cls, config: RunConfig, policy: str | Path, algorithm: PolicyGradient) -> GRPOModule:
        """The module of a configured run."""
        return cls(
            policy,
            algorithm,
            config.actor.optimizer,
            n_minibatches=config.actor.ppo_n_minibatches,
            max_tokens_per_mb=config.actor.max_tokens_per_mb,
            temperature=config.gconfig.temperature,
            max_skipped_steps=config.trainer.max_skipped_steps,
        )

    def configure_callbacks(self) -> list[Any]:
        """The callbacks that this module cannot train without. Lightning's first hook: so it joins the Trainer, too."""
        join(self, self._trainer)
        return [self.weight_sync, self.weight_sync.unfinished]

    def configure_model(self) -> None:
        """Load the policy and lay it out over the mesh, once."""
        if self.policy is None:
            self.policy = self.archon.parallelize(self.policy_path).train()
            if self.algorithm.needs_reference:
                self.reference = ReferencePolicy(self.archon, self.policy)

    def configure_optimizers(self) -> Any:
        """AdamW under ``planned_schedule``, over all optimizer steps that the Trainer's limits allow."""
        assert self.policy is not None
        c = self.optimizer_config
        optimizer = configured_adamw(self.policy.parameters(), c)
        total = self.planned_batches * self.n_minibatches
        return [optimizer], [planned_schedule(optimizer, total, c.warmup_steps, c.final_lr_fraction)]

    def on_train_start(self) -> None:
        """Settings of a resumed optimizer are this run's, not the checkpoint's."""
        self._shift = shift_of(self.trainer, self.weights_version)
        scheduler, total = cast("LambdaLR", self.lr_schedulers()), self.planned_batches * self.n_minibatches
        as_configured(self.archon.optimizers[0], scheduler, total, self.optimizer_config)

    # -- training -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """``n_minibatches`` planned optimizer steps on one batch of rollouts: those with a signal are made."""
        optimizer, scheduler = cast("LightningOptimizer", self.optimizers()), cast("LRScheduler", self.lr_schedulers())
        totals: dict[str, Tensor] = {}
        norms: list[Tensor] = []
        started = time.perf_counter()
        with self.data.clock.phase("train"):
            # All log-probs to compare with are computed before the first step changes the weights.
            minibatches = self._minibatches(batch)
            for k in range(self.n_minibatches):
                minibatch = minibatches[k] if k < len(minibatches) else None
                if minibatch is not None and self._teaches(minibatch):
                    optimizer.zero_grad()
                    local = self.forward_pass.local_microbatches(minibatch)
                    output = self.archon.forward_backward(local, self._loss, temperature=self.temperature)
                    norm = self.archon.clip_grad_norm(self.optimizer_config.gradient_clipping)
                    if self.skipped.takes(norm, self.weights_version):
                        norms.append(norm)
                        optimizer.step()
                        totals = merge(totals, output.metrics)
                scheduler.step()  # also for a step that is left out: see planned_schedule
        metrics = (loss_metrics(totals) if totals else {}) | self.data.rollouts.metrics
        metrics |= update_metrics(batch, norms, time.perf_counter() - started, self.skipped.of(self.weights_version))
        metrics["optim/lr"] = optimizer.param_groups[0]["lr"]
        self.last_metrics = self.log_step(metrics, self.last_metrics)
        self.weights_version += 1  # here, so that a checkpoint that a callback writes after the batch has the new one

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Bring the new weights into the engine and check that both sides agree."""
        self.weight_sync.run(self.trainer, self)

    def on_train_end(self) -> None:
        self.data.end_collection()

    def _teaches(self, batch: Batch) -> bool:
        """Whether the loss has a gradient. Without one, the optimizer would still move weights by momentum."""
        a = self.algorithm
        return bool(a.kl_ctl or a.entropy_coef) or any(row.advantages.any() for row in batch.rows)

    def _minibatches(self, batch: Batch) -> list[Batch]:
        """The planned optimizer steps on ``batch``, as their loss needs them."""
        seed = self.weights_version
        if not len(batch) or not self._teaches(batch):
            return batch.minibatches(self.n_minibatches, seed)
        return self.forward_pass.minibatches(batch, self.algorithm, self.reference, self.n_minibatches, seed)

    def _loss(self, outputs: TokenOutputs, microbatch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.algorithm.loss(outputs.logprobs, outputs.entropy, cast("Mapping[str, Tensor]", microbatch))

    # -- validation and checkpoints -----------------------------------------------------------------------------------

    def validation_step(self, batch: ValidationPlan, batch_idx: int) -> None:
        """Play the validation tasks and log pass^k and the other validation metrics."""
        with self.data.clock.phase("validate"):
            self.last_evaluation = self.data.evaluate(batch)
        for name, value in self.last_evaluation["metrics"].items():
            self.log(name, value, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["weights_version"] = self.weights_version

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        self.weights_version = int(checkpoint["weights_version"])
        self.weight_sync.outdated = True

    # -- for callbacks -----------------------------------------------------------------------------------------------

    def token_logprobs(self, rows: list[list[int]], positions: list[list[int]] | None = None) -> list[list[float]]:
        """Log-probs (nats, temperature 1) under the current weights; see `BatchForward.token_logprobs`. Collective."""
        return self.forward_pass.token_logprobs(rows, positions)

    @property
    def planned_batches(self) -> float:
        """Number of training batches until training ends by itself; infinite when only time or a callback ends it."""
        return planned_batches(self.trainer, self.n_minibatches, self._shift)

    @property
    def forward_pass(self) -> BatchForward:
        """Computes batches under the trainer's strategy."""
        return BatchForward(self.archon, self.max_tokens_per_mb, self.temperature)

    @property
    def archon(self) -> ArchonStrategy:
        """The trainer's strategy."""
        return cast("ArchonStrategy", self.trainer.strategy)

    @property
    def data(self) -> Tau2DataModule:
        """The trainer's datamodule."""
        return cast("Tau2DataModule", self.trainer.datamodule)  # type: ignore[attr-defined]
