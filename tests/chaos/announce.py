"""A callback that says which phase a run is in, and holds the run there, so that a fault meets it at a known place."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L

from tau2_lightning.callbacks.seams import data_of, module_of
from tau2_lightning.launch.run_folder import RunFolder

HOLD_SECONDS = 120.0


class Announce(L.Callback):
    """Writes ``<phase>:<number>`` into ``phases.txt`` of the run's folder when a phase begins, ``trained:<version>``
    when a step is complete. At ``hold`` it waits until the file ``go`` appears beside it. The numbers count the phases
    of one start, from 1."""

    def __init__(self, folder: RunFolder, hold: str = "") -> None:
        self.root, self.hold = folder.root, hold
        self._begun: Counter[str] = Counter()
        self._wrapped = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._wrapped or not trainer.is_global_zero:
            return
        self._wrapped = True
        clock: Any = data_of(trainer).clock
        before: Callable[[], None] | None = clock.entered

        def entered() -> None:
            if before is not None:
                before()
            self._announce(clock.current)

        clock.entered = entered

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Before the checkpoint of the step is written: Lightning calls callbacks that write some last."""
        if trainer.is_global_zero:
            self._write(f"trained:{module_of(pl_module).weights_version}")

    def _write(self, line: str) -> None:
        with (self.root / "phases.txt").open("a") as file:
            file.write(f"{line}\n")

    def _announce(self, phase: str) -> None:
        self._begun[phase] += 1
        here = f"{phase}:{self._begun[phase]}"
        self._write(here)
        ends = time.monotonic() + HOLD_SECONDS
        while here == self.hold and not (self.root / "go").exists() and time.monotonic() < ends:
            time.sleep(0.02)


def announced(root: Path) -> list[str]:
    """The phases that have begun so far, over all starts."""
    file = root / "phases.txt"
    return file.read_text().splitlines() if file.exists() else []
