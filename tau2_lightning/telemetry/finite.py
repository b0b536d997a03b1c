"""Numbers that are not finite: a step with such a gradient is left out, and none of them is logged."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import lightning as L
import structlog
from torch import Tensor

from tau2_lightning.errors import TrainingDiverged

from .warned import warn

log = structlog.get_logger(__name__)

WINDOW = 100  # optimizer steps over which skipped ones are counted


class SkippedSteps:
    """Decides which optimizer steps are made: those with a finite gradient. All ranks have the same norm, so all decide
    alike.

    More than ``allowed`` skipped steps among the newest ``WINDOW`` end the run.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self._newest: deque[bool] = deque(maxlen=WINDOW)
        self._by_version: Counter[int] = Counter()

    def of(self, version: int) -> int:
        """The steps of the batch that was trained on at ``version`` that were skipped."""
        return self._by_version[version]

    def takes(self, norm: Tensor, version: int) -> bool:
        """Whether the step whose gradient has this norm is made; ``version`` is that of the weights.

        Raises TrainingDiverged when too many steps were not. The weights are then those of the last step that was.
        """
        value = float(norm)
        good = math.isfinite(value)
        self._newest.append(not good)
        if good:
            return True
        self._by_version[version] += 1
        skipped = sum(self._newest)
        what = f"the gradient's norm is {value} at weights version {version}"
        if skipped > self.allowed:
            raise TrainingDiverged(
                f"{what}; {skipped} of the newest {len(self._newest)} optimizer steps had no finite gradient, more "
                f"than trainer.max_skipped_steps={self.allowed}. The weights are finite: resume with a lower "
                "actor.optimizer.lr, or look for what these batches have in common"
            )
        warn(f"{what}: this optimizer step is left out ({skipped} of {self.allowed})")
        log.warning("optimizer step left out", norm=value, version=version, skipped=skipped)
        return False


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are numbers, and how many are not, as ``telemetry/nonfinite``."""
    kept = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return kept | {"telemetry/nonfinite": float(len(metrics) - len(kept))}


class FiniteLog(L.LightningModule):
    """A LightningModule that logs no number that is not finite; the log file names it."""

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """As LightningModule's, which ``log_dict`` calls, too."""
        if _is_number(value):
            super().log(name, value, *args, **options)
        else:
            log.warning("a metric is not finite: not logged", metric=name, value=str(value))
            self._forget(name)

    def log_step(self, metrics: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
        """Log the metrics of a step that are finite, and return them. ``before`` are those of the step before: what is
        missing now is forgotten."""
        kept = finite(metrics)
        for name in metrics.keys() - kept.keys():
            log.warning("a metric is not finite: not logged", metric=name, value=str(metrics[name]))
        for name in before.keys() - kept.keys():
            self._forget(name)
        self.log_dict(kept, batch_size=1)
        return kept

    def _forget(self, name: str) -> None:
        """Lightning would log the newest value of ``name`` again, as if it were this step's."""
        results = self._trainer._results if self._trainer is not None else None
        if results is not None:
            results.pop(f"{self._current_fx_name}.{name}", None)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() != 1 or math.isfinite(float(value))
    return not isinstance(value, int | float) or math.isfinite(value)
