"""Shows on W&B and TensorBoard what is more than numbers: dialogues, results files, exports, the best score."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import lightning as L
import orjson

from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.rollout_files.files import read_episodes
from tau2_lightning.rollout_files.names import FOLDER, FileName, kept_files
from tau2_lightning.telemetry.dashboards import Dashboard, dashboards

from .dialogues import sampled, shown
from .retention import BEST
from .scores import Scores
from .seams import module_of

WAITING = 4  # newest batches whose files are looked for; an older one has not been kept


class Dashboards(L.Callback):
    """Reads what other callbacks write into the run's ``folder``, on rank 0; comes after them in the configuration.

    ``dialogues`` is the most episodes shown of a batch or validation (0: none), of every ``every_n_steps``-th batch.
    ``exports``: ``reference`` notes where each Hugging Face folder lies, ``upload`` copies it to W&B, ``none``. Does
    nothing without a logger that is a `Dashboard`.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        dialogues: int,
        every_n_steps: int,
        exports: Literal["reference", "upload", "none"],
    ) -> None:
        if dialogues < 0 or every_n_steps < 1:
            raise ValueError(f"dialogues={dialogues}, every_n_steps={every_n_steps}: at least 0 and 1 are needed")
        if exports not in ("reference", "upload", "none"):
            raise ValueError(f"exports={exports!r} must be reference, upload or none")
        self.folder, self.dialogues, self.every_n_steps, self.exports = folder, dialogues, every_n_steps, exports
        self.scores = Scores()
        self._waiting: list[int] = []
        self._known: set[Path] | None = None  # files of earlier starts, and those that are shown
        self._best = ""

    # -- Lightning's hooks --------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._known is None and self._shows(trainer):
            self.scores = Scores.of_earlier_starts(self.folder)
            exports = self._exports()
            self._best = next((path.name for path, best in exports if best), "")
            shown_before = [*self.folder.results.glob("*.json"), *self._validations()]
            self._known = {*shown_before, *(path for path, _ in exports)}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = module_of(pl_module).weights_version
        if self._shows(trainer) and self.dialogues and (done - 1) % self.every_n_steps == 0:
            self._waiting = [*self._waiting, done - 1][-WAITING:]
        self._show(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = module_of(pl_module)
        if self._shows(trainer):
            self.scores.add(module.weights_version, module.last_evaluation.get("metrics", {}))
            for dashboard in dashboards(trainer.loggers):
                dashboard.keep_summary(module.weights_version, self.scores.summary())
        self._show(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._show(trainer)

    # -- inside -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _shows(trainer: L.Trainer) -> bool:
        return trainer.is_global_zero and bool(dashboards(trainer.loggers))

    def _show(self, trainer: L.Trainer) -> None:
        """Show what has been written since the last time; other threads write, so it may be there a moment later."""
        if not self._shows(trainer) or self._known is None:
            return
        found = dashboards(trainer.loggers)
        self._show_batches(found)
        for path in self._validations() if self.dialogues else ():
            if self._is_new(path):
                self._show_file(found, "validate", path)
        results = [path for path in sorted(self.folder.results.glob("*.json")) if self._is_new(path)]
        for dashboard in found if results else ():
            dashboard.keep_files("results", "results", results)
        self._show_exports(found)

    def _show_batches(self, found: list[Dashboard]) -> None:
        for step in list(self._waiting):
            path = self.folder.root / FOLDER / str(FileName("train", step))
            if path.is_file():
                self._waiting.remove(step)
                self._show_file(found, "train", path)

    def _show_file(self, found: list[Dashboard], kind: str, path: Path) -> None:
        try:
            episodes = read_episodes(path)
        except OSError:  # it made room for newer ones
            return
        chosen = sampled(episodes, self.dialogues, seed=episodes[0].step if episodes else 0)
        for dashboard in found if chosen else ():
            dashboard.show_dialogues(kind, chosen[0].step, [shown(one) for one in chosen])

    def _show_exports(self, found: list[Dashboard]) -> None:
        if self.exports == "none":
            return
        for path, best in self._exports():
            name = path.name if best else ""
            if self._is_new(path) or name not in ("", self._best):
                self._best = name or self._best
                for dashboard in found:
                    aliases = [path.name, "best"] if best else [path.name]
                    dashboard.keep_files("model", "policy", [path], aliases=aliases, how=self.exports)

    def _exports(self) -> list[tuple[Path, bool]]:
        """The whole exports, the oldest first, and whether each is the best."""
        best = ""
        with suppress(OSError, ValueError, KeyError):
            best = orjson.loads((self.folder.exports / BEST).read_bytes())["export"]
        whole = [path for path in self.folder.exports.glob("step*") if path.is_dir() and not path.suffix]
        return [(path, path.name == best) for path in sorted(whole, key=lambda path: path.stat().st_mtime)]

    def _validations(self) -> list[Path]:
        return [path for _, path in kept_files(self.folder.root / FOLDER, ("validate",))]

    def _is_new(self, path: Path) -> bool:
        """Whether ``path`` is seen for the first time."""
        assert self._known is not None
        new = path not in self._known
        self._known.add(path)
        return new


def keep_policy(trainer: L.Trainer, policy: Path) -> None:
    """Keep the trained policy at ``policy`` as the newest version of the exports, where they are kept. Any rank."""
    for callback in trainer.callbacks if trainer.is_global_zero else ():  # type: ignore[attr-defined]
        if isinstance(callback, Dashboards) and callback.exports != "none":
            for dashboard in dashboards(trainer.loggers):
                dashboard.keep_files("model", "policy", [policy], aliases=["final"], how=callback.exports)
