"""The page: one HTML file with its data, its program and the curve library in it, and without any address outside."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from tau2_lightning.evaluation.pooled import Pool
from tau2_lightning.rollout_files.names import FOLDER
from tau2_lightning.rollout_files.vocabulary import read_vocabulary

from .book import CHUNK, Book, PackedFile
from .packed import packed
from .runs import RunData, stamp_differences
from .series import with_reward_interval

#: uPlot 1.6.32, MIT: curves. 51 KB, against 4 MB of a general plotting library; the table, the timeline and the
#: dialogues are the page's own, because what they show is particular to it (docs/report.md).
LIBRARY = "vendor/uPlot.iife.min.js"
STYLES = ("vendor/uPlot.min.css", "style.css")
PROGRAM = ("core.js", "filters.js", "curves.js", "timeline.js", "table.js", "tokens.js", "dialogue.js", "main.js")


class Page:
    """Writes the page of ``runs``, again and again with ``--watch``. ``limit`` bounds its episodes, newest first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.shown = self.known = 0
        self._book = Book()
        self._pools: list[dict[str, Any]] = []

    def write(
        self, runs: Sequence[RunData], out: Path, *, reload_s: float | None, made: str, pools: Sequence[Pool] = ()
    ) -> None:
        """Write the page to ``out``, whole or not at all. ``reload_s``: it loads itself again after so many seconds;
        ``pools`` are the tables above the curves."""
        chosen = self._chosen(runs)
        for number, run in enumerate(runs):
            with_reward_interval(run.series, (one for at, file in chosen if at == number for one in file.episodes))
        self._pools = [pool.payload() for pool in pools]
        temporary = out.with_name(out.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(self._parts(runs, chosen, reload_s, made))
        os.replace(temporary, out)

    def _chosen(self, runs: Sequence[RunData]) -> list[tuple[int, PackedFile]]:
        """(run, file) in order. Of too many episodes the newest of each run stay, by whole files."""
        self.shown = self.known = 0
        share = self.limit // max(1, sum((run.root / FOLDER).is_dir() for run in runs))
        chosen: list[tuple[int, PackedFile]] = []
        for number, run in enumerate(runs):
            left = share
            own: list[tuple[int, PackedFile]] = []
            for name, path in self._book.files(run.root):
                if left <= 0:
                    self.known += _rows(path)
                    continue
                packed_file = self._book.packed(name, path)
                if packed_file is None:
                    continue
                own.append((number, packed_file))
                left -= len(packed_file)
            chosen += reversed(own)
        self.shown = sum(len(file) for _, file in chosen)
        self.known += self.shown
        return chosen

    def _parts(
        self, runs: Sequence[RunData], chosen: Sequence[tuple[int, PackedFile]], reload_s: float | None, made: str
    ) -> Iterator[str]:
        title = html.escape("tau2_lightning: " + ", ".join(run.name for run in runs))
        head = _asset("page.html").replace("{{title}}", title)
        before, after = head.split("{{content}}")
        yield before.replace("{{style}}", "\n".join(_asset(name) for name in STYLES))
        yield _data("index", self._index(runs, chosen, reload_s, made))
        number = 0
        for _, file in chosen:
            for chunk in file.chunks:
                yield f'<script type="text/plain" id="chunk-{number}">{chunk}</script>\n'
                number += 1
        texts: dict[str, str] = {}
        for _, file in chosen:
            texts |= file.texts
        yield _data("texts", texts)
        for at, run in enumerate(runs):
            yield _data(f"vocabulary-{at}", self._vocabulary(run, (file for owner, file in chosen if owner == at)))
        yield f"<script>{_asset(LIBRARY)}</script>\n"
        yield '<script>"use strict";\n' + "\n".join(_asset(name) for name in PROGRAM) + "</script>\n"
        yield after

    def _index(
        self, runs: Sequence[RunData], chosen: Sequence[tuple[int, PackedFile]], reload_s: float | None, made: str
    ) -> dict[str, Any]:
        names = list(chosen[0][1].columns) if chosen else []
        columns: dict[str, list[Any]] = {name: [] for name in names}
        owners: list[int] = []
        chunks: list[int] = []
        places: list[int] = []
        at = 0
        for owner, file in chosen:
            for name in names:
                columns[name] += file.columns[name]
            owners += [owner] * len(file)
            chunks += [at + n // CHUNK for n in range(len(file))]
            places += [n % CHUNK for n in range(len(file))]
            at += len(file.chunks)
        return {
            "made": made,
            "reload": reload_s,
            "known": self.known,
            "runs": [run.payload() for run in runs],
            "differences": stamp_differences(runs),
            "pools": self._pools,
            "episodes": {"run": owners, "chunk": chunks, "place": places, **columns},
        }

    @staticmethod
    def _vocabulary(run: RunData, packed_files: Iterable[PackedFile]) -> dict[int, str]:
        texts = read_vocabulary(run.root / FOLDER)
        used = sorted(set().union(*(file.token_ids for file in packed_files)))
        return {token: texts[token] for token in used if token < len(texts)}


def _data(name: str, value: Any) -> str:
    return f'<script type="text/plain" id="{name}">{packed(value)}</script>\n'


def _asset(name: str) -> str:
    return files("tau2_lightning.report").joinpath("assets", name).read_text(encoding="utf-8")


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except OSError:
        return 0
