"""Which checkpoints of a run stay: the newest, the best by validated pass^1, and the one that it was resumed from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from tau2_lightning.durable import write_durably
from tau2_lightning.launch.run_folder import RunFolder

BEST = "best.json"
MACRO = "eval/macro/pass^1"


class Retention:
    """The checkpoints of this start and of the starts that it continues; files of other runs are never among them.

    ``keep`` is the number of newest ones that stay (-1: all). ``best.json`` of the run folder names the best one.
    """

    def __init__(self, folder: RunFolder, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._ours: set[str] = set()
        self._by_version: dict[int, str] = {}
        self._resumed: str | None = None
        self._best: dict[str, Any] = {}

    def continues(self, checkpoint: Path | None, version: int) -> None:
        """Training starts, from ``checkpoint`` of ``version`` (None: anew). One of this folder brings its elders."""
        if checkpoint is None or checkpoint.resolve().parent != self.folder.checkpoints.resolve():
            return
        self._ours = {path.name for path in self.folder.finished_checkpoints()}
        self._resumed, self._by_version[version] = checkpoint.name, checkpoint.name
        with suppress(OSError, ValueError):
            best = orjson.loads((self.folder.root / BEST).read_bytes())
            self._best = best if best["checkpoint"] in self._ours else {}

    def saved(self, path: Path, version: int) -> None:
        """A checkpoint of ``version`` was written, or is being written."""
        self._ours.add(path.name)
        self._by_version[version] = path.name

    def validated(self, evaluation: Mapping[str, Any]) -> None:
        """Note the score of a validation (its payload), when its weights are in a checkpoint and none was better."""
        score = validated_score(evaluation)
        name = self._by_version.get(int(evaluation.get("weights_version", -1)))
        if score is None or name is None or score < self._best.get("pass^1", -1.0):
            return
        best = {"checkpoint": name, "pass^1": score, "weights_version": evaluation["weights_version"]}
        if best != self._best:
            self._best = best
            write_durably(self.folder.root / BEST, orjson.dumps(best, option=orjson.OPT_INDENT_2))

    def superfluous(self, saved: Path) -> list[Path]:
        """The checkpoints to remove after ``saved``, which counts as the newest although its write may still go on."""
        if self.keep <= 0:
            return []
        others = [path for path in self.folder.finished_checkpoints() if path.name in self._ours]
        others = [path for path in others if path.name != saved.name]
        kept = {self._resumed, self._best.get("checkpoint")}
        return [path for path in others[self.keep - 1 :] if path.name not in kept]


def validated_score(evaluation: Mapping[str, Any]) -> float | None:
    """pass^1 of a validation, of several domains the mean over them; None without one."""
    metrics: Mapping[str, float] = evaluation.get("metrics", {})
    name = score_name(metrics)
    return None if name is None else float(metrics[name])


def score_name(metrics: Mapping[str, Any]) -> str | None:
    """The name of the number that validations are compared by: pass^1, of several domains the mean over them."""
    if MACRO in metrics:
        return MACRO
    names = [name for name in metrics if name.endswith("/pass^1")]
    return names[0] if len(names) == 1 else None
