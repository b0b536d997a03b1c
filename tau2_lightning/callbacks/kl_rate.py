"""Holds the change of the policy in one batch near a target, by the learning rate.

The rule is the adaptive learning rate of Rudin et al. 2022, "Learning to Walk in Minutes" (arXiv:2109.11978, appendix).
With KL the divergence of the new policy from the one that sampled the batch:

    KL > 2 * target    ->  lr / 1.5
    KL < target / 2    ->  lr * 1.5

The rate never exceeds the schedule's, and never falls below a 64th of it.
"""

from __future__ import annotations

import random
from typing import Any, cast

import lightning as L
import numpy as np
from torch.optim.lr_scheduler import LambdaLR

from tau2_lightning.batch.batch import Batch
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.forward import BatchForward
from tau2_lightning.strategy.learning_rate import scale

from .seams import module_of

STEP, LEAST = 1.5, 1 / 64


class KLRate(L.Callback):
    """Measures the KL divergence after every batch, on ``rows`` of its rows, and adapts the learning rate.

    ``target``: nats per trained token and batch; None: that of ``config``, and without one nothing is measured. The
    measurement is a forward pass over the rows under the new weights. The factor is in the checkpoint.
    """

    def __init__(self, target: float | None = None, rows: int = 16, config: RunConfig | None = None) -> None:
        configured = None if config is None else config.actor.optimizer.target_kl
        self.target, self.rows, self.factor = target or configured, rows, 1.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.target is not None:
            scale(trainer.optimizers[0], cast("LambdaLR", pl_module.lr_schedulers()), self.factor)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Measure and adapt. Collective."""
        module = module_of(pl_module)
        if self.target is None or not module.last_metrics.get("optim/grad_norm"):
            return  # a batch without an optimizer step says nothing about the rate
        kl = divergence(module.forward_pass, chosen(batch, self.rows, module.weights_version))
        self.factor = adapted(self.factor, kl, self.target)
        metrics = {"optim/step_kl": kl, "optim/lr_factor": self.factor}
        module.last_metrics |= metrics
        pl_module.log_dict(metrics, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.factor = float(state_dict["factor"])


def adapted(factor: float, kl: float, target: float) -> float:
    """The factor of the learning rate for the next batch; see the module's docstring. Values that are no numbers lower
    it."""
    if not kl <= 2 * target:
        return max(LEAST, factor / STEP)
    return min(1.0, factor * STEP) if kl < target / 2 else factor


def chosen(batch: Batch, count: int, seed: int) -> Batch:
    """``count`` rows of ``batch`` with trained tokens, drawn by ``seed``: the same on every rank."""
    rows = [row for row in batch.rows if row.loss_mask.any()]
    return batch.select(random.Random(seed).sample(rows, min(count, len(rows))), own_counts=True)


def divergence(forward: BatchForward, batch: Batch) -> float:
    """Mean over trained tokens of ``exp(d) - 1 - d``, d = log(pi_now / pi_behaviour): KL(behaviour || now) in nats, by
    Schulman's estimator k3 on tokens that the behaviour policy sampled. Collective."""
    now = forward.with_logprobs(batch, "proximal_logprobs")
    parts = [
        (row.columns["proximal_logprobs"] - row.behaviour_logprobs)[row.loss_mask].astype(np.float64)
        for row in now.rows
    ]
    d = np.concatenate(parts) if parts else np.zeros(1)
    return float(np.mean(np.expm1(d) - d))
