"""How many training batches a run makes, also when it was resumed with epochs of another length."""

from __future__ import annotations

import math
from typing import Any

import lightning as L


def planned_batches(trainer: L.Trainer, n_minibatches: int, shift: int = 0) -> float:
    """Number of training batches until training ends by itself; infinite when only time or a callback ends it.

    ``max_steps`` counts optimizer steps, of which a batch makes ``n_minibatches``. ``shift`` is that of `shift_of`.
    """
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    by_steps = math.ceil(trainer.max_steps / n_minibatches) if trainer.max_steps >= 0 else math.inf
    endless = trainer.max_epochs in (None, -1)
    by_epochs = math.inf if endless else max(trainer.max_epochs or 0, 1) * trainer.num_training_batches + shift
    return min(by_steps, by_epochs)


def shift_of(trainer: L.Trainer, batches_done: int) -> int:
    """Batches done beyond those that earlier epochs would have under today's ``batches_per_epoch``: 0 when it is the
    one that the run began with. For the start of training."""
    loop = trainer.fit_loop
    each = loop.max_batches
    if math.isinf(each):
        return 0
    epochs: Any = loop.epoch_progress.current
    inside = loop.epoch_loop.batch_progress.current.ready if epochs.ready > epochs.processed else 0
    return batches_done - (int(epochs.processed) * int(each) + int(inside))
