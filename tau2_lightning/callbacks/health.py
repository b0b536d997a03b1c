"""Warnings about training that goes wrong while every number is still finite: a spike, a collapsed entropy."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Any

import lightning as L
import structlog

from tau2_lightning.telemetry.warned import warn

from .seams import module_of

log = structlog.get_logger(__name__)

WINDOW = 20  # batches that a value is compared with
LEAST = 5  # of them, before anything is compared
# A spike is so many times further from the median than the values of the window are in the middle, and so many times
# as large as the median: small numbers that jump about are no spike.
SPREADS, TIMES = 10.0, 3.0
WATCHED = ("loss/mean", "optim/grad_norm", "mismatch_kl/all/mean")
ENTROPY = "entropy/all/mean"
# The entropy has collapsed below this share of its median at the beginning; it has recovered above twice that.
COLLAPSED, RECOVERED = 0.1, 0.2


class TrainingHealth(L.Callback):
    """Warns once for each occurrence: once per spike, and once until a collapsed entropy has recovered."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in WATCHED}
        self._spiking: set[str] = set()
        self._first: list[float] = []
        self._collapsed = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        module = module_of(pl_module)
        for warning in self.look(module.last_metrics):
            warn(f"step {module.weights_version}: {warning}")
            log.warning("training health", step=module.weights_version, what=warning)

    def look(self, metrics: dict[str, float]) -> list[str]:
        """What is wrong with the numbers of a batch, and was not wrong with those of the batch before."""
        found = [self._spike(name, metrics[name]) for name in WATCHED if name in metrics]
        if ENTROPY in metrics:
            found.append(self._collapse(metrics[ENTROPY]))
        return [one for one in found if one]

    def _spike(self, name: str, value: float) -> str:
        seen = self._seen[name]
        text = ""
        if len(seen) >= LEAST:
            middle = median(seen)
            spread = median(abs(one - middle) for one in seen)
            away = abs(value - middle)
            spikes = away > SPREADS * spread and away > TIMES * abs(middle) and away > 0
            if spikes and name not in self._spiking:
                text = f"{name} is {value:.3g}; the median of the {len(seen)} batches before is {middle:.3g}"
            self._spiking = self._spiking | {name} if spikes else self._spiking - {name}
            if spikes:
                return text  # what spikes is no measure for the next batches
        seen.append(value)
        return text

    def _collapse(self, value: float) -> str:
        if len(self._first) < LEAST:
            self._first.append(value)
            return ""
        beginning = median(self._first)
        if self._collapsed:
            self._collapsed = value < RECOVERED * beginning
            return ""
        self._collapsed = value < COLLAPSED * beginning
        if not self._collapsed:
            return ""
        return (
            f"the entropy has collapsed: {value:.3g} nats, {beginning:.3g} at the beginning. Samples of a task become "
            "alike, and groups lose their signal: lower actor.optimizer.lr, or set algorithm.entropy_coef"
        )
