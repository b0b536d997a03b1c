"""The progress of a run on screen: one live line on a terminal, one line per step and a heartbeat elsewhere."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tau2_lightning.environment import waits_for_models

from .seams import data_of, module_of

if TYPE_CHECKING:
    from tau2_lightning.datamodule import Tau2DataModule

HEARTBEAT_SECONDS = 30.0
REFRESH_SECONDS = 0.5


class RunProgress(L.Callback):
    """Progress with reward, transfer rate, tokens per second and the current phase.

    ``style`` is ``rich`` (a live bar), ``plain`` (lines), ``off``, or ``auto``: rich on a terminal, else plain.
    """

    def __init__(self, style: str = "auto", console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.style = ("rich" if self.console.is_terminal else "plain") if style == "auto" else style
        self._done = threading.Event()
        self._watcher: threading.Thread | None = None
        self._bar: Progress | None = None

    # Lightning calls these around each of fit and validate.
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.style == "off" or not trainer.is_global_zero:
            return
        self._done.clear()
        data = data_of(trainer)
        title = {"fit": "training", "validate": "validating"}.get(stage, stage)
        if self.style == "rich":
            self._show_bar(title, data)
        else:
            self._watch(lambda: self._print(f"{title}: {data.clock}: {_state(data)[2]}"), HEARTBEAT_SECONDS)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.style == "off" or not trainer.is_global_zero:
            return
        module = module_of(pl_module)
        total, m = module.planned_batches, module.last_metrics
        step = f"{module.weights_version}" + ("" if math.isinf(total) else f"/{total:.0f}")
        self._print(
            f"step {step}  reward {_number(m, 'reward/mean', '.3f')}  transfer {_number(m, 'transfer_rate', '.2f')}  "
            f"groups with signal {m.get('groups/kept', 0):.0f}/{m.get('groups/collected', 0):.0f}  "
            f"turns {_number(m, 'effective/num_turns/mean', '.1f')}  "
            f"{m.get('perf/rollout_tokens_per_second', 0):.0f} tok/s  "
            f"entropy {_number(m, 'entropy/all/mean', '.3f')}  clip {_number(m, 'clip_ratio/region_mean', '.3f')}  "
            f"grad {m.get('optim/grad_norm', 0):.2f}  "
            f"rollout {m.get('time/rollout', 0):.1f}s train {m.get('time/forward_backward', 0):.1f}s"
        )

    def _print(self, text: str) -> None:
        (self._bar.console if self._bar else self.console).print(text, highlight=False, soft_wrap=True)

    def _show_bar(self, title: str, data: Tau2DataModule) -> None:
        bar = self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(), console=self.console, transient=True,
        )  # fmt: skip
        task = bar.add_task(title, total=None, text="")
        bar.start()

        def show() -> None:
            done, total, text = _state(data)
            bar.update(task, description=f"{title} {data.clock}", completed=done, total=total, text=text)

        self._watch(show, REFRESH_SECONDS)

    def _watch(self, show: Callable[[], None], every: float) -> None:
        def loop() -> None:
            while not self._done.wait(every):
                show()

        self._watcher = threading.Thread(target=loop, name="progress", daemon=True)
        self._watcher.start()

    def _stop(self) -> None:
        self._done.set()
        if self._watcher is not None:
            self._watcher.join(timeout=5)
            self._watcher = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        sys.stderr.flush()


def _number(metrics: Mapping[str, float], name: str, form: str) -> str:
    return format(metrics[name], form) if name in metrics else "-"


def _state(data: Tau2DataModule) -> tuple[int, int | None, str]:
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
