"""The parts of the module and of the datamodule that a callback may read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import lightning as L

if TYPE_CHECKING:
    from tau2_lightning.datamodule import Tau2DataModule
    from tau2_lightning.forward import BatchForward
    from tau2_lightning.strategy import ArchonStrategy


class PolicyModule(Protocol):
    """The part of ``GRPOModule`` that callbacks use."""

    weights_version: int
    """Version of the module's weights: 0 at the start of training, one more after every batch."""
    last_metrics: dict[str, float]
    """Metrics of the newest step under the names of docs/metrics.md. The metrics of its weight sync are added after
    ``on_train_batch_end`` of the callbacks."""
    last_evaluation: dict[str, Any]
    """The newest validation as JSON-able data (``evaluation.macro.payload_of_all``); empty before the first."""

    @property
    def forward_pass(self) -> BatchForward:
        """Computes log-probs of a batch's rows under the current weights."""

    @property
    def planned_batches(self) -> float:
        """Number of training batches until training ends by itself; infinite when only time or you end it."""

    def token_logprobs(self, rows: list[list[int]], positions: list[list[int]] | None = None) -> list[list[float]]:
        """Log-probs (nats, temperature 1) of the tokens at ``positions[i]`` of row i under the current weights, by
        default of all tokens but the first. Collective."""


def module_of(pl_module: L.LightningModule) -> PolicyModule:
    """``pl_module`` as the part that a callback may read."""
    return cast("PolicyModule", pl_module)


def data_of(trainer: L.Trainer) -> Tau2DataModule:
    """The trainer's datamodule: ``evaluations``, ``clock``, ``rollouts`` (mostly filled on rank 0 only)."""
    return cast("Tau2DataModule", trainer.datamodule)  # type: ignore[attr-defined]


def strategy_of(trainer: L.Trainer) -> ArchonStrategy:
    """The trainer's strategy."""
    return cast("ArchonStrategy", trainer.strategy)
