"""Brings the module's weights into the engine and checks that both compute the same log-probabilities."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import structlog
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from tau2_lightning.errors import ParityError
from tau2_lightning.rollout.engine.sleep_level import sleep_level
from tau2_lightning.rollout.weights.guard_rows import GuardRows

from .seams import PolicyModule, data_of, module_of, strategy_of
from .unfinished import UnfinishedBatch

log = structlog.get_logger(__name__)


class WeightSync(L.Callback):
    """Keeps the engine at the weights of the module, which returns this callback from ``configure_callbacks``.

    The module calls ``run`` in its own ``on_train_batch_end``, which Lightning calls after that of all callbacks. So in
    every callback's hook the engine still has the weights that the step started from, in any order of the list. Before
    training and before a validation this callback publishes by itself when the engine holds other weights: ``outdated``
    says that something other than a training step changed the module's (a loaded checkpoint).
    """

    def __init__(self) -> None:
        self.outdated = False
        self.unfinished = UnfinishedBatch()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ensure_current(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Engines on the trainer's GPUs give their memory back while it computes. Collective."""
        data = data_of(trainer)
        if sleep_level(data.config):
            with data.clock.phase("engine sleep"):
                data.from_rank_zero.json(data.rollouts.sleep)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ensure_current(trainer, pl_module)

    def run(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Publish the weights of a training step, compare log-probs, log both. Collective.

        Where engine and trainer disagree, the weights are published once more. If they still disagree, training saves a
        checkpoint and ParityError is raised. An error on rank 0 is raised on every rank.
        """
        pl_module.log_dict(self._bring(trainer, pl_module), batch_size=1)

    def _bring(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        """As `run`; returns the metrics. Those of a start belong to no step, so they are not in the record."""
        started = time.perf_counter()
        module = module_of(pl_module)
        if sleep_level(data_of(trainer).config):
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()
            torch.cuda.empty_cache()  # engines that share the GPU wake up in it
        with data_of(trainer).clock.phase("weight sync"):
            published = _publish(trainer, module.weights_version)
            try:
                differences = _check_parity(trainer, module)
            except ParityError as error:
                log.warning("publishing the weights once more", version=module.weights_version, error=str(error))
                published = _publish(trainer, module.weights_version)
                differences = _checked_again(trainer, module)
        self.outdated = False
        metrics = {**published, "time/broadcast_weights": time.perf_counter() - started}
        metrics |= {f"sync/logp_difference/{name}": value for name, value in differences.items()}
        module.last_metrics |= metrics
        self.unfinished.sync_metrics = metrics
        return metrics

    def _ensure_current(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.outdated or data_of(trainer).rollouts.version != module_of(pl_module).weights_version:
            self._bring(trainer, pl_module)


def _checked_again(trainer: L.Trainer, module: PolicyModule) -> dict[str, float]:
    """As `_check_parity`; a second failure saves a checkpoint first, where training goes on. Collective."""
    try:
        return _check_parity(trainer, module)
    except ParityError:
        keeper = trainer.checkpoint_callback
        if trainer.training and isinstance(keeper, ModelCheckpoint) and keeper.dirpath:
            path = Path(keeper.dirpath) / f"step{trainer.global_step}.ckpt"
            trainer.save_checkpoint(path)
            log.warning("saved a checkpoint before stopping", path=str(path))
        raise


def _publish(trainer: L.Trainer, version: int) -> dict[str, float]:
    """Bring the weights into the engine as ``version``; returns the metrics of the publication."""
    strategy = strategy_of(trainer)
    if strategy.lora and data_of(trainer).config.actor.lora.sync == "adapter":
        return publish_adapter(trainer, version)
    return publish_weights(trainer, version, strategy.iter_full_weights())


def publish_weights(trainer: L.Trainer, version: int, buckets: Iterator[list[tuple[str, Tensor]]]) -> dict[str, float]:
    """Bring full weights, named as Hugging Face names them, into the engine from rank 0. Collective.

    Making ``buckets`` is collective too, so every rank consumes the iterator completely, even after a failure.
    Returns the metrics (``SyncReport.metrics``).
    """
    data = data_of(trainer)
    rollouts = data.rollouts
    rollouts.version = version
    metrics: dict[str, float] = {}
    failure: BaseException | None = None
    if rollouts.service is None:
        deque(buckets, maxlen=0)
    else:
        try:
            metrics = rollouts.service.publish(version, buckets).metrics()
        except BaseException as error:  # noqa: BLE001  # raised below, on every rank
            failure = error
            if trainer.strategy.world_size > 1:  # type: ignore[attr-defined]
                _exhaust(buckets, data.config.rollout.weight_sync.timeout)

    def outcome() -> dict[str, float]:
        if failure is not None:
            raise failure
        return metrics

    return data.from_rank_zero.json(outcome)


def publish_adapter(trainer: L.Trainer, version: int) -> dict[str, float]:
    """Bring the strategy's LoRA adapter into the engine, on top of the weights it serves. Collective.

    The adapter is a folder in the run's folder, so that engines on other nodes see it; the previous one is removed
    afterwards. Returns the metrics (``SyncReport.metrics``).
    """
    data = data_of(trainer)
    rollouts = data.rollouts
    rollouts.version = version
    folder = rollouts.run_dir / "adapter" / f"v{version}"
    strategy_of(trainer).save_adapter(folder)

    def send() -> dict[str, float]:
        report = rollouts.running.publish_adapter(version, folder)
        for old in folder.parent.glob("v*"):
            if old != folder:
                shutil.rmtree(old)
        return report.metrics()

    return data.from_rank_zero.json(send)


def _check_parity(trainer: L.Trainer, module: PolicyModule) -> dict[str, float]:
    """Mean, 99th percentile and maximum of the differences of log-probs (nats) on a few rows. Collective."""
    data = data_of(trainer)
    guard = GuardRows(**data.from_rank_zero.json(lambda: asdict(data.rollouts.guard_rows())))
    expected = module.token_logprobs(guard.rows, guard.positions)

    def compare() -> dict[str, float]:
        report = data.rollouts.running.check_parity(guard, expected)
        return {"mean": report.mean, "p99": report.p99, "max": report.max}

    return data.from_rank_zero.json(compare)


def _exhaust(buckets: Iterator[Any], seconds: float) -> None:
    """Consume the remaining buckets after a failure. The failure itself is raised later; other errors do not replace
    it.

    A publication that broke off may have left a thread in the middle of a bucket; it is waited for ``seconds``.
    """
    ends = time.monotonic() + seconds
    with suppress(Exception):
        while time.monotonic() < ends:
            try:
                deque(buckets, maxlen=0)
            except ValueError:  # the generator is running in that thread
                time.sleep(0.05)
            else:
                return
