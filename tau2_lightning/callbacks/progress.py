"""The progress of a run on screen: a live view on a terminal, a line for each step and a heartbeat elsewhere."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import lightning as L
from rich.console import Console

from tau2_lightning.environment import waits_for_models
from tau2_lightning.launch.run_folder import RunFolder

from .live import LiveView
from .seams import data_of, module_of, strategy_of
from .standing import Standing

if TYPE_CHECKING:
    from tau2_lightning.datamodule import Tau2DataModule

HEARTBEAT_SECONDS = 30.0
TITLES = {"fit": "training", "validate": "validating"}


class RunProgress(L.Callback):
    """Steps done and time left, rewards, pass^1 and its change, signal, transfers, tokens per second, staleness,
    excluded episodes by cause, memory, and the current phase (docs/screen.md).

    ``style`` is ``rich`` (the live view), ``plain`` (lines), ``off``, or ``auto``: rich on a terminal, else plain. A
    resumed run goes on with what ``folder`` has recorded.
    """

    def __init__(self, style: str = "auto", console: Console | None = None, folder: RunFolder | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.style = ("rich" if self.console.is_terminal else "plain") if style == "auto" else style
        self.folder, self.standing = folder, Standing()
        self._done = threading.Event()
        self._heart: threading.Thread | None = None
        self._view: LiveView | None = None
        if folder is not None and self.style != "off":
            self.standing.go_on(folder)

    # Lightning calls these around each of fit and validate.
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not self._shows(trainer):
            return
        self._done.clear()
        data, doing = data_of(trainer), TITLES.get(stage, stage)
        self.standing.device = strategy_of(trainer).root_device
        if self.style == "rich":
            name = "" if self.folder is None else f"{self.folder.root.parent.name}/{self.folder.root.name}: "
            self._view = LiveView(
                self.console, f"{name}{doing}", self.standing, lambda: playing(data), lambda: str(data.clock)
            )
            self._view.start()
        else:
            self._heart = threading.Thread(target=self._beat, args=(doing, data), name="progress", daemon=True)
            self._heart.start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._shows(trainer):
            module = module_of(pl_module)
            self.standing.begin(module.weights_version, module.planned_batches)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._shows(trainer):
            module = module_of(pl_module)
            self.standing.batch(module.weights_version, module.planned_batches, module.last_metrics)
            self._print(self.standing.line())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._shows(trainer):
            module = module_of(pl_module)
            self.standing.scores.add(module.weights_version, module.last_evaluation.get("metrics", {}))
            if self.standing.score:
                self._print(f"validated after step {module.weights_version}: pass^1 {self.standing.score}")

    def _shows(self, trainer: L.Trainer) -> bool:
        return self.style != "off" and trainer.is_global_zero

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _beat(self, doing: str, data: Tau2DataModule) -> None:
        while not self._done.wait(HEARTBEAT_SECONDS):
            self._print(f"{doing}: {data.clock}: {playing(data)[2]}")

    def _stop(self) -> None:
        self._done.set()
        if self._heart is not None:
            self._heart.join(timeout=5)
            self._heart = None
        if self._view is not None:
            self._view.stop()
            self._view = None
        sys.stderr.flush()


def playing(data: Tau2DataModule) -> tuple[int, int | None, str]:
    """Episodes finished, the total number of episodes (None: unknown), and a text about them and about what they wait
    for."""
    service = data.rollouts.service
    if service is None:
        return 0, None, "starting"
    p = service.progress
    text = f"{p.finished}/{p.total} episodes  reward {'-' if p.reward is None else format(p.reward, '.2f')}"
    if p.finished:
        text += f"  transfer {p.transfers / p.finished:.2f}"
    if p.excluded:
        text += f"  excluded {p.excluded}{p.why_excluded}"
    for waits in filter(None, (waits_for_models(), service.waits)):
        text += f"  {waits}"
    return p.finished, p.total or None, text
