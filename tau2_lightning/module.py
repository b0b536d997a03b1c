"""GRPOModule: the GRPO update, weight sync and validation of one policy, as a LightningModule."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor

from tau2_lightning.algorithm import PolicyGradient, merge
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.scoring import scoring_batch
from tau2_lightning.config.schema import OptimizerConfig, RunConfig
from tau2_lightning.errors import TrainingDiverged
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.strategy.optimizer import adamw
from tau2_lightning.telemetry.step_metrics import loss_metrics

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from torch.optim.lr_scheduler import LRScheduler

    from tau2_lightning.datamodule import Tau2DataModule, ValidationPlan
    from tau2_lightning.strategy import ArchonStrategy
    from tau2_lightning.strategy.outputs import TokenOutputs


class GRPOModule(L.LightningModule):
    """A policy under GRPO (or another ``algorithm``), optimised by hand under an ``ArchonStrategy``.

    ``policy`` is a Hugging Face folder. Each training batch makes ``n_minibatches`` optimizer steps;
    micro-batches hold at most ``max_tokens_per_mb`` tokens. ``temperature`` is the rollouts' own, so that
    trainer and engine speak of the same distribution.
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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy_path, self.algorithm, self.optimizer_config = str(policy), algorithm, optimizer
        self.n_minibatches, self.max_tokens_per_mb, self.temperature = n_minibatches, max_tokens_per_mb, temperature
        self.policy: torch.nn.Module | None = None
        self.weights_version = 0
        self._weights_changed_outside = False
        self._reference: list[Tensor] = []
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
        )

    @property
    def archon(self) -> ArchonStrategy:
        """The trainer's strategy."""
        return cast("ArchonStrategy", self.trainer.strategy)

    @property
    def data(self) -> Tau2DataModule:
        """The trainer's datamodule."""
        return cast("Tau2DataModule", self.trainer.datamodule)  # type: ignore[attr-defined]

    @property
    def _optimizer(self) -> LightningOptimizer:
        return cast("LightningOptimizer", self.optimizers())

    def configure_model(self) -> None:
        """Load the policy and lay it out over the mesh, once."""
        if self.policy is None:
            self.policy = self.archon.parallelize(self.policy_path).train()
            if self.algorithm.needs_reference and not self.archon.lora:
                # The policy that training starts from, shard by shard as it lies here, whatever the layout.
                self._reference = [parameter.detach().clone() for parameter in self.policy.parameters()]

    def configure_optimizers(self) -> Any:
        """AdamW under ``lr_factor``."""
        assert self.policy is not None
        c = self.optimizer_config
        optimizer = adamw(self.policy.parameters(), lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay)
        total = self.trainer.estimated_stepping_batches * self.n_minibatches
        factor = partial(lr_factor, total=total, warmup=c.warmup_steps, final=c.final_lr_fraction)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """``n_minibatches`` optimizer steps on one batch of rollouts."""
        optimizer, scheduler = self._optimizer, cast("LRScheduler", self.lr_schedulers())
        totals: dict[str, Tensor] = {}
        norms: list[Tensor] = []
        started = time.perf_counter()
        with self.data.clock.phase("train"):
            shares = [
                self._with_logprobs(minibatch)
                for minibatch in batch.minibatches(self.n_minibatches, seed=self.weights_version)
                if self._teaches(minibatch)
            ]
            for microbatches in map(self._microbatches, shares):
                optimizer.zero_grad()
                output = self.archon.forward_backward(microbatches, self._loss, temperature=self.temperature)
                norm = self.archon.clip_grad_norm(self.optimizer_config.gradient_clipping)
                if not torch.isfinite(norm):
                    raise TrainingDiverged(f"gradient norm {norm.item()} at weights version {self.weights_version}")
                norms.append(norm)
                optimizer.step()
                scheduler.step()
                totals = merge(totals, output.metrics)
        self._log_step(batch, totals, norms, time.perf_counter() - started)

    def _teaches(self, batch: Batch) -> bool:
        """Whether the loss of ``batch`` has a gradient. A step without one would move weights by momentum alone."""
        rests_on_advantages = not self.algorithm.kl_ctl and not self.algorithm.entropy_coef
        return not rests_on_advantages or any(row.advantages.any() for row in batch.rows)

    def _with_logprobs(self, minibatch: Batch) -> Batch:
        """``minibatch`` with the proximal and reference log-probs the algorithm asks for, computed before any step."""
        wanted = {
            "proximal_logprobs": self.algorithm.needs_proximal,
            "reference_logprobs": self.algorithm.needs_reference,
        }
        for name in (name for name, needed in wanted.items() if needed):
            # Every data-parallel rank computes all rows: minibatches are sharded afterwards, by tokens.
            microbatches = minibatch.microbatches(self.max_tokens_per_mb, packed=self.archon.packs)
            with self._reference_policy() if name == "reference_logprobs" else nullcontext():
                outputs = self.archon.token_outputs(microbatches, temperature=self.temperature)
            minibatch = minibatch.with_logprobs(name, microbatches, [output.logprobs for output in outputs])
        return minibatch

    def _reference_policy(self) -> AbstractContextManager[None]:
        return self.archon.base_only() if self.archon.lora else self._reference_weights()

    @contextmanager
    def _reference_weights(self) -> Iterator[None]:
        """The reference policy's weights in the place of the trained ones."""
        assert self.policy is not None
        parameters = list(self.policy.parameters())
        trained = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            _copy(parameters, self._reference)
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(parameters, trained)

    def _loss(self, outputs: TokenOutputs, microbatch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss_view = cast("Mapping[str, Tensor]", microbatch)
        return self.algorithm.loss(outputs.logprobs, outputs.entropy, loss_view)

    def _microbatches(self, batch: Batch) -> list[MicroBatch]:
        """This rank's share of ``batch``; every data-parallel rank gets equally many micro-batches.

        A pipeline gets a multiple of its ranks: as many as it must run anyway.
        """
        strategy, budget = self.archon, self.max_tokens_per_mb
        options: dict[str, Any] = {"packed": strategy.packs}
        count = batch.microbatch_count(budget, strategy.data_world, multiple=strategy.spec.p, **options)
        return batch.shard(strategy.data_rank, strategy.data_world).microbatches(budget, count, **options)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Bring the new weights into the engine and check that both sides agree."""
        self.weights_version += 1
        self.sync_weights()

    def sync_weights(self) -> None:
        """Publish this module's weights under ``weights_version``; raises ParityError when the engine disagrees."""
        started = time.perf_counter()
        with self.data.clock.phase("weight sync"):
            if self.archon.lora and self.data.takes_adapters:
                self.data.publish_adapter(self.weights_version, self.archon.save_adapter)
            else:
                self.data.publish(self.weights_version, self.archon.iter_full_weights())
            parity = self.data.check_parity(self.token_logprobs)
        self._weights_changed_outside = False
        metrics = {
            "time/broadcast_weights": time.perf_counter() - started,
            "sync/logp_difference/max": parity.max,
            "sync/logp_difference/mean": parity.mean,
        }
        self.last_metrics |= metrics
        if self.trainer.training:
            self.log_dict(metrics, batch_size=1)

    def token_logprobs(self, rows: list[list[int]]) -> list[list[float]]:
        """Log-probabilities (nats, temperature 1) of tokens 1.. of each row under the current weights."""
        # Every data-parallel rank scores all rows: the guard compares a handful.
        values: dict[int, list[float]] = {}
        microbatches = scoring_batch(rows).microbatches(self.max_tokens_per_mb, packed=self.archon.packs)
        for mb, out in zip(microbatches, self.archon.token_outputs(microbatches), strict=True):
            for row, length, logprobs in zip(mb["row_ids"].tolist(), mb["lengths"].tolist(), out.logprobs, strict=True):
                values[row] = logprobs[: length - 1].tolist()
        return [values[row] for row in range(len(rows))]

    def on_train_start(self) -> None:
        self._ensure_engine_is_current()

    def on_train_end(self) -> None:
        self.data.end_collection()

    def on_validation_start(self) -> None:
        self._ensure_engine_is_current()

    def validation_step(self, batch: ValidationPlan, batch_idx: int) -> None:
        """Play the validation tasks and log pass^k and its company."""
        with self.data.clock.phase("validate"):
            self.last_evaluation = self.data.evaluate(batch)
        for name, value in self.last_evaluation["metrics"].items():
            self.log(name, value, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["weights_version"] = self.weights_version

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        self.weights_version = int(checkpoint["weights_version"])
        self._weights_changed_outside = True

    def _ensure_engine_is_current(self) -> None:
        if self._weights_changed_outside or self.data.version != self.weights_version:
            self.sync_weights()

    def _log_step(self, batch: Batch, totals: dict[str, Tensor], norms: list[Tensor], seconds: float) -> None:
        metrics = loss_metrics(totals) if totals else {}
        metrics |= self.data.shared_rollout_metrics
        metrics |= {f"batch/{name}": float(value) for name, value in batch.statistics.items()}
        metrics["optim/grad_norm"] = float(torch.stack(norms).mean()) if norms else 0.0
        metrics["optim/lr"] = self._optimizer.param_groups[0]["lr"]
        metrics["time/forward_backward"] = seconds
        tokens = sum(len(row) for row in batch.rows)
        metrics["perf/throughput"] = tokens / seconds if seconds else 0.0
        self.last_metrics = metrics
        self.log_dict(metrics, batch_size=1)


def lr_factor(step: int, *, total: float, warmup: int, final: float) -> float:
    """Learning-rate factor of optimizer step ``step`` of ``total``: a linear rise over ``warmup``, a fall to ``final``.

    Steps beyond ``total`` (a resumed run made longer) keep the last factor.
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    fallen = min(1.0, max(0, step - warmup) / max(1, total - 1 - warmup))
    return rise * (1.0 - (1.0 - final) * fallen)


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
