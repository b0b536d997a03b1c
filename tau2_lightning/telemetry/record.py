"""The metrics of a run in one CSV file over all its starts: a resumed run goes on in it, and steps count once."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from tau2_lightning.durable import write_durably

FILE = ExperimentWriter.NAME_METRICS_FILE
REPLAYED = "replayed.csv"
# Only training steps have one of them; a step without a signal, or without a finite gradient, has no loss.
OF_A_STEP = ("loss/mean", "optim/lr", "sft/loss")


class WholeFile(ExperimentWriter):
    """Lightning's writer, for a file that is whole at every moment: where a kill comes while it is written anew, for a
    further column or by a resumed run, it is as it was."""

    def take_over(self, rows: list[dict[str, str]]) -> None:
        """Begin with ``rows`` in the place of what the file holds."""
        self.metrics_keys = sorted(set().union(*rows))
        _replace(Path(self.metrics_file_path), self.metrics_keys, rows)

    def _check_log_dir_exists(self) -> None:
        """Lightning removes the file here."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        _replace(path, fieldnames, _rows(path))


class ContinuedCSV(CSVLogger):
    """``<folder>/metrics.csv``, continued after ``batches_done`` training batches; ``validates`` as for `split`.

    Lines that an earlier start wrote and this one makes again move to ``replayed.csv``.
    """

    def __init__(self, folder: Path, batches_done: int = 0, *, validates: bool = False) -> None:
        super().__init__(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=1)
        self._folder, self._batches_done, self._validates = folder, batches_done, validates

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer. The first call takes over the lines of the starts before."""
        if self._experiment is None:
            writer = self._experiment = WholeFile(self.log_dir)
            if (self._folder / FILE).is_file():
                kept, replayed = split(_rows(self._folder / FILE), self._batches_done, validates=self._validates)
                _append(self._folder / REPLAYED, replayed)
                writer.take_over(kept)
        return self._experiment

    def holds(self, step: int) -> bool:
        """Whether the numbers of training step ``step`` are in the record. Call it on rank 0."""
        self.experiment.save()
        rows = _rows(self._folder / FILE) if (self._folder / FILE).is_file() else []
        return any(int(float(row["step"])) == step and not row.keys().isdisjoint(OF_A_STEP) for row in rows)


def split(
    rows: list[dict[str, str]], batches_done: int, *, validates: bool = False
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(the lines of a record that stay after ``batches_done`` batches, the lines that are made again).

    The line of the first batch has step 0. A validation has the step of the batch before it, or, at the end of a
    start, the number of batches: which of the two it is shows in the line before. ``validates``: the validation
    after the last of these batches is made again; its line is one that follows that of the batch.
    """
    kept: list[dict[str, str]] = []
    replayed: list[dict[str, str]] = []
    ended = False  # the line of the last of these batches has passed
    for row in rows:
        step, of_a_batch = int(float(row.get("step") or 0)), any(map(row.get, OF_A_STEP))
        again = step > batches_done or (step == batches_done and (of_a_batch or bool(replayed)))
        again = again or (validates and ended and step == batches_done - 1)
        ended = ended or (of_a_batch and step == batches_done - 1)
        (replayed if again else kept).append(row)
    return kept, replayed


def _rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file without empty cells; a line that was cut off in the middle is left out."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        return [
            {key: value for key, value in row.items() if value and key}
            for row in reader
            if None not in row.values() and _is_number(row.get("step"))
        ]


def _is_number(text: str | None) -> bool:
    return text is not None and text.replace(".", "", 1).isdigit()


def _append(path: Path, rows: list[dict[str, str]]) -> None:
    if not rows:
        return
    earlier = _rows(path) if path.is_file() else []
    _replace(path, sorted(set().union(*earlier, *rows)), [*earlier, *rows])


def _replace(path: Path, names: list[str], rows: list[dict[str, str]]) -> None:
    """Write the file with these columns and lines."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=names)
    writer.writeheader()
    writer.writerows(rows)
    write_durably(path, text.getvalue().encode())


def earlier(folder: Path, batches_done: int, *, validates: bool = False) -> list[dict[str, float]]:
    """The numbers of the lines in ``<folder>/metrics.csv`` that stay after ``batches_done`` batches, in order."""
    path = folder / FILE
    kept = split(_rows(path), batches_done, validates=validates)[0] if path.is_file() else []
    return [{name: float(text) for name, text in row.items() if _is_real(text)} for row in kept]


def _is_real(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
