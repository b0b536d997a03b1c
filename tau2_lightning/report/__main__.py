"""``python -m tau2_lightning.report RUN [RUN...]``: the runs as one HTML file that needs no network."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tau2_lightning.errors import ConfigError

from .page import Page
from .runs import find_runs, names_of, read_run

MOST_EPISODES = 10_000
EVERY_SECONDS = 20.0


def main(argv: Sequence[str] | None = None, *, wait: Callable[[float], None] = time.sleep) -> int:
    """Write the page. Returns the exit code: 0 written, 2 there is no run, 130 ended by Ctrl-C without a page."""
    options = _parser().parse_args(argv)
    try:
        roots = find_runs(options.runs)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    out = options.out or (roots[0] / "report.html" if len(roots) == 1 else Path("report.html"))
    page = Page(options.episodes)
    _write(page, roots, out, options.every if options.watch else None)
    _say(page, out)
    if options.watch:
        print(f"following; the page loads itself again every {options.every:g} s. Ctrl-C ends it", flush=True)
        try:
            while True:
                wait(options.every)
                _write(page, roots, out, options.every)
        except KeyboardInterrupt:
            _write(page, roots, out, None)  # the last state, which stays as it is
            _say(page, out)
    return 0


def _write(page: Page, roots: Sequence[Path], out: Path, reload_s: float | None) -> None:
    runs = [read_run(root, name) for root, name in zip(roots, names_of(roots), strict=True)]
    made = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    page.write(runs, out, reload_s=reload_s, made=made)


def _say(page: Page, out: Path) -> None:
    left = page.known - page.shown
    beyond = f"; {left} older ones are not in it (--episodes)" if left else ""
    size = out.stat().st_size / 2**20
    print(f"{out.absolute()}: {page.shown} episodes, {size:.1f} MiB{beyond}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tau2_lightning.report",
        description="Write one HTML file with the curves, phases and episodes of one run or of several side by side.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run's folder, or a folder of runs")
    parser.add_argument("--out", type=Path, help="the file; default: report.html in the run's folder, or in this one")
    parser.add_argument(
        "--watch", action="store_true", help="write it again and again, until Ctrl-C, as the job goes on"
    )
    parser.add_argument("--every", type=float, default=EVERY_SECONDS, help="seconds between two writes of --watch")
    parser.add_argument(
        "--episodes",
        type=int,
        default=MOST_EPISODES,
        help=f"most episodes in the page, the newest of each run (default {MOST_EPISODES})",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
