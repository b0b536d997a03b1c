"""Reading kept episodes back: ``tau2_lightning.read_rollouts``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tau2_lightning.errors import ConfigError, Violation

from .episodes import trained_rows
from .files import read_episodes, read_scores
from .names import FOLDER, FileName, kept_files
from .schema import KeptEpisode


def read_rollouts(
    run: str | Path,
    *,
    step: int | Collection[int] | None = None,
    split: str | None = None,
    kind: str | None = None,
    dialogues: bool = True,
) -> Iterator[KeptEpisode]:
    """The kept episodes of the run folder ``run``, in the order of steps, a validation before the batch of its step.

    ``step`` (one or several), ``split`` (tau2's: ``train``, ``test``, ...) and ``kind`` (``train`` or ``validate``)
    choose among them. Without ``dialogues`` only the columns of a table are read: messages, turns and tokens stay
    empty. Files are opened one after the other, as they are asked for. Raises ConfigError where ``run`` is no folder.
    """
    root = Path(run)
    if not root.is_dir():
        raise ConfigError([Violation("run", str(run), "is no folder", "Give the folder of a run")])
    steps = None if step is None else {step} if isinstance(step, int) else set(step)
    return _read(root / FOLDER, steps, split, kind, dialogues)


def read_file(name: FileName, path: Path, *, dialogues: bool = True) -> list[KeptEpisode]:
    """The episodes of one file. Raises FileNotFoundError when it has gone."""
    episodes = read_episodes(path, dialogues=dialogues)
    return (
        _with_scores(episodes, path.parent, name) if dialogues and name.kind == "train" and name.rank == 0 else episodes
    )


def _read(
    folder: Path, steps: set[int] | None, split: str | None, kind: str | None, dialogues: bool
) -> Iterator[KeptEpisode]:
    for name, path in kept_files(folder):
        if (steps is not None and name.step not in steps) or kind not in (None, name.kind):
            continue
        try:
            episodes = read_file(name, path, dialogues=dialogues)
        except FileNotFoundError:  # it made room for newer ones
            continue
        yield from (episode for episode in episodes if split in (None, episode.split))


def _with_scores(episodes: Sequence[KeptEpisode], folder: Path, name: FileName) -> list[KeptEpisode]:
    """``episodes`` with the trainer's log-probs, from the files of all ranks."""
    scores: dict[int, npt.NDArray[np.float32]] = {}
    for other, path in kept_files(folder, ("scores",)):
        if other.step == name.step:
            scores |= read_scores(path)
    places = trained_rows([one.status for one in episodes], [len(one.row_lengths) for one in episodes])
    filled: dict[int, npt.NDArray[np.float32]] = {}
    for row_id, (episode, row) in enumerate(places):
        one = episodes[episode]
        values = filled.setdefault(episode, np.full(len(one.tokens), np.nan, np.float32))
        if row_id not in scores:
            continue
        ends = np.cumsum(one.row_lengths)
        start, end = int(ends[row] - one.row_lengths[row]), int(ends[row])
        at = start + np.flatnonzero(one.trained[start:end])
        if len(at) == len(scores[row_id]):
            values[at] = scores[row_id]
    return [
        replace(one, trainer_logprobs=filled.get(n, np.full(len(one.tokens), np.nan, np.float32)))
        for n, one in enumerate(episodes)
    ]
