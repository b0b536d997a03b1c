"""The page of runs, written from their folders: once, from Python, or again and again by the command."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tau2_lightning.evaluation.pooled import Pool

from .page import Page
from .pooling import variants
from .runs import find_runs, names_of, read_run

FILE = "report.html"
MOST_EPISODES = 10_000


def write_report(*runs: str | Path, out: str | Path | None = None, episodes: int = MOST_EPISODES) -> Path:
    """Write ``runs``, folders of runs, as one HTML page that needs no network (docs/report.md); returns its file.

    ``out`` is the file, by default ``report.html`` in the folder that is given, of several in the current one;
    ``episodes`` the most episodes in it, the newest of each run. Raises ConfigError for a folder that holds no run.
    """
    folders = [Path(run) for run in runs]
    found = Path(out) if out is not None else (folders[0] if len(folders) == 1 else Path()) / FILE
    write_page(Page(episodes), find_runs(folders), found)
    return found


def write_page(
    page: Page, roots: Sequence[Path], out: Path, reload_s: float | None = None, pool: bool = False
) -> list[Pool]:
    """Write the page; with ``pool``, returns the evaluations by variant, and shows the mean of each before its runs."""
    runs = [read_run(root, name) for root, name in zip(roots, names_of(roots), strict=True)]
    made = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    found = variants(runs) if pool else []
    means = [one.mean() for one in found if len(one.runs) > 1]
    pools = [one.pool() for one in found]
    page.write([*means, *runs], out, reload_s=reload_s, made=made, pools=pools)
    return pools
