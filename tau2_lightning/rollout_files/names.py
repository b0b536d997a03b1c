"""Names of the files in ``rollouts/``, and which of them go when the bound is reached."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tau2_lightning.config.kept import KeptBound

FOLDER = "rollouts"
#: The files of steps that a resumed run makes again.
REPLAYED = "replayed"
SUFFIX = ".parquet"
Kind = Literal["train", "validate", "scores"]
_FORM = re.compile(r"(train|validate|scores)-(\d+)(?:-v(\d+))?(?:-s(\d+))?(?:-r(\d+))?\.parquet")


@dataclass(frozen=True)
class FileName:
    """The parts of a name: ``train-000012.parquet``, ``validate-000012-v02-s3.parquet``, ``scores-000012-r001...``.

    ``step`` counts training batches from 0, as in ``metrics.csv``; of a validation it is the number of batches before
    it. ``number`` counts the validations of a start. ``start`` is named from the second on, ``rank`` above 0.
    ``scores`` hold the trainer's log-probs of a step's tokens: each rank writes those that it has computed.
    """

    kind: Kind
    step: int
    number: int | None = None
    start: int = 1
    rank: int = 0

    def __str__(self) -> str:
        name = f"{self.kind}-{self.step:06d}"
        name += "" if self.number is None else f"-v{self.number:02d}"
        name += "" if self.start == 1 else f"-s{self.start}"
        name += f"-r{self.rank:03d}" if self.rank else ""
        return name + SUFFIX

    @classmethod
    def of(cls, path: Path) -> FileName | None:
        """The parts of a file's name; None for a file that is none of these."""
        found = _FORM.fullmatch(path.name)
        if found is None:
            return None
        kind: Kind = "train" if found[1] == "train" else "validate" if found[1] == "validate" else "scores"
        number = None if found[3] is None else int(found[3])
        return cls(kind, int(found[2]), number, int(found[4] or 1), int(found[5] or 0))


def kept_files(folder: Path, kinds: Iterable[Kind] = ("train", "validate")) -> list[tuple[FileName, Path]]:
    """The files of ``folder``, in the order of their steps; a validation comes before the batch of its step."""
    wanted = set(kinds)
    named = [(FileName.of(path), path) for path in folder.glob(f"*{SUFFIX}")]
    found = [(name, path) for name, path in named if name is not None and name.kind in wanted]
    return sorted(found, key=lambda one: _order(one[0]))


def _order(name: FileName) -> tuple[int | bool | str, ...]:
    return name.step, name.kind != "validate", name.kind, name.start, name.number or 0, name.rank


def too_many(folder: Path, bound: KeptBound) -> list[Path]:
    """The oldest files, beyond ``bound``. The newest step stays, however large it is."""
    files = kept_files(folder, ("train", "validate", "scores"))
    replayed = kept_files(folder / REPLAYED, ("train", "validate", "scores"))
    if not files:
        return []
    newest = files[-1][0].step
    if bound.steps is not None:
        first = newest - bound.steps + 1
        return [path for name, path in [*replayed, *files] if name.step < first]
    if bound.size is None:
        return []
    left = bound.size
    removed: list[Path] = []
    for name, path in [*reversed(files), *reversed(replayed)]:
        left -= path.stat().st_size
        if left < 0 and (name.step < newest or path.parent != folder):
            removed.append(path)
    return removed
