"""pass^k as a torchmetric, for trials that come in any order and from any rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torchmetrics
from torch import Tensor

from .pass_hat import SUCCESS_TOLERANCE, pass_hat_k_estimate


class PassHatK(torchmetrics.Metric):
    """pass^k as a torchmetric: feed trials in any order and from any rank, get the mean over tasks.

    Tasks with fewer than ``k`` trials are left out; NaN when none is left. State: a digest of the task id (int64) and
    whether the trial succeeded (bool), one element per trial, gathered over ranks.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    tasks: list[Tensor]
    successes: list[Tensor]

    def __init__(self, k: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"k must be positive, got {k}")
        self.k = k
        self.add_state("tasks", default=[], dist_reduce_fx="cat")
        self.add_state("successes", default=[], dist_reduce_fx="cat")

    def update(self, task_ids: Sequence[str], rewards: Tensor | Sequence[float]) -> None:
        """Add trials: one task id and one reward each."""
        values = torch.as_tensor(rewards, dtype=torch.float64, device=self.device)
        if values.shape != (len(task_ids),):
            raise ValueError(f"{len(task_ids)} task ids but rewards of shape {tuple(values.shape)}")
        digests = [int.from_bytes(hashlib.sha256(i.encode()).digest()[:8], "big", signed=True) for i in task_ids]
        self.tasks.append(torch.tensor(digests, dtype=torch.int64, device=self.device))
        self.successes.append((values - 1.0).abs() <= SUCCESS_TOLERANCE)

    def compute(self) -> Tensor:
        """pass^k, float64 scalar."""
        tasks, successes = _joined(self.tasks), _joined(self.successes)
        _, owner = torch.unique(tasks, return_inverse=True)
        trials: list[list[bool]] = [[] for _ in range(int(owner.max()) + 1 if owner.numel() else 0)]
        for index, success in zip(owner.tolist(), successes.tolist(), strict=True):
            trials[index].append(bool(success))
        return torch.tensor(pass_hat_k_estimate(trials, self.k).value, dtype=torch.float64, device=self.device)


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    # After a gather torchmetrics holds one tensor instead of the list.
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.empty(0, dtype=torch.int64)
