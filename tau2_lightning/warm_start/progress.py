"""The progress of supervised fine-tuning on screen: loss, held-out loss, share of sure tokens, speed, time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from .module import SFTModule

LINE_SECONDS = 15.0


class SFTProgress(L.Callback):
    """A live bar on a terminal, else a line every ``LINE_SECONDS``. ``style`` as for RunProgress; ``title`` leads."""

    def __init__(self, title: str, style: str = "auto", console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console(stderr=True)
        self.style = ("rich" if self.console.is_terminal else "plain") if style == "auto" else style
        self._bar: Progress | None = None
        self._started = self._last_line = 0.0
        self._first = 0  # steps that an earlier start has made

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = self._last_line = time.perf_counter()
        self._first = trainer.global_step
        if self._first and self.style != "off" and trainer.is_global_zero:
            self.console.print(f"{self.title}: going on after step {self._first}", highlight=False)
        if self.style == "rich" and trainer.is_global_zero:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar.add_task(self.title, total=trainer.num_training_batches, completed=self._first, text="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.style == "off" or not trainer.is_global_zero:
            return
        m = cast("SFTModule", pl_module).last_metrics
        text = f"loss {m['sft/loss']:.3f}  sure {m['sft/sure']:.3f}  {m['sft/tokens_per_second']:.0f} tok/s"
        if "sft/valid_loss" in m:
            text += f"  held-out loss {m['sft/valid_loss']:.3f}"
        done, total, now = trainer.global_step, int(trainer.num_training_batches), time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, text=text)
        elif now - self._last_line >= LINE_SECONDS or done == total:
            left = (now - self._started) / (done - self._first) * (total - done)
            self.console.print(f"{self.title}: step {done}/{total}  {text}  {left:.0f} s left", highlight=False)
            self._last_line = now

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()
        loss = cast("SFTModule", pl_module).last_metrics.get("sft/valid_loss")
        if loss is not None and self.style != "off" and trainer.is_global_zero:
            self.console.print(f"{self.title}: held-out loss {loss:.3f}", highlight=False)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
