"""A run on TensorBoard: numbers with a layout, dialogues as texts, hyper-parameters beside pass^1."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from tau2_lightning.config.flat import flattened

from .dashboards import How, ShownDialogue
from .layout import Chapter


class RunTensorBoard(TensorBoardLogger):
    """Lightning's TensorBoardLogger as a `Dashboard`. ``configuration`` are the hyper-parameters, ``scores`` the names
    of pass^1, ``chapters`` the layout of the tab "custom scalars"; ``options`` are TensorBoardLogger's."""

    def __init__(
        self,
        *,
        configuration: Mapping[str, Any] | None = None,
        scores: Sequence[str] = (),
        chapters: Sequence[Chapter] = (),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._scores, self._chapters = tuple(scores), tuple(chapters)
        self._words: dict[str, Any] = flattened(configuration or {})
        self.hparams.update(self._words)
        self._laid_out = False

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        """Write the configuration and ``params`` for the tab "hparams"; its metrics are the run's own pass^1 and
        ``metrics``. TensorBoard takes texts, numbers and flags: other values are written as texts."""
        from torch.utils.tensorboard.summary import hparams

        self._words |= flattened(vars(params) if isinstance(params, Namespace) else params)
        self.hparams.update(self._words)
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in self._words.items()
        }
        if metrics:
            self.log_metrics(metrics, step)
        writer = self.experiment._get_file_writer()
        for summary in hparams(plain, dict.fromkeys((*self._scores, *(metrics or ())), 0.0)):
            writer.add_summary(summary, step)
        if self._chapters and not self._laid_out:
            self._laid_out = True
            self.experiment.add_custom_scalars(_custom_scalars(self._chapters))

    @rank_zero_only
    def show_dialogues(self, kind: str, step: int, dialogues: Sequence[ShownDialogue]) -> None:
        """Texts ``dialogues/<kind>/0`` and so on."""
        for place, dialogue in enumerate(dialogues):
            self.experiment.add_text(f"dialogues/{kind}/{place}", dialogue.markdown(), step)

    @rank_zero_only
    def keep_files(
        self, kind: str, name: str, paths: Sequence[Path], *, aliases: Sequence[str] = (), how: How = "upload"
    ) -> None:
        """A text that names where the files lie: TensorBoard keeps none."""
        lines = "\n".join(f"- `{path}`" for path in paths)
        self.experiment.add_text(f"files/{kind}/{name}", f"{', '.join(aliases)}\n\n{lines}")

    @rank_zero_only
    def keep_summary(self, step: int, values: Mapping[str, float]) -> None:
        """Curves of these numbers."""
        self.log_metrics(dict(values), step)

    def where(self) -> str:
        """The command that shows it."""
        return f"TensorBoard: tensorboard --logdir {self.log_dir}"


def _custom_scalars(chapters: Sequence[Chapter]) -> dict[str, dict[str, list[Any]]]:
    """As ``SummaryWriter.add_custom_scalars`` takes a layout: a margin chart for a value with bounds."""
    return {
        chapter.title: {
            plot.title: ["Margin" if plot.band else "Multiline", list(plot.names)] for plot in chapter.plots
        }
        for chapter in chapters
    }
