"""``python -m tau2_lightning.report RUN [RUN...]``: the runs as one HTML file that needs no network."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from tau2_lightning.durable import write_durably
from tau2_lightning.errors import ConfigError

from .page import Page
from .runs import find_runs
from .writing import FILE, MOST_EPISODES, write_page

EVERY_SECONDS = 20.0
POOLED = "pooled.json"


def main(argv: Sequence[str] | None = None, *, wait: Callable[[float], None] = time.sleep) -> int:
    """Write the page. Returns the exit code: 0 written, 2 there is no run, 130 ended by Ctrl-C without a page."""
    options = _parser().parse_args(argv)
    try:
        roots = find_runs(options.runs)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    out = options.out or (options.runs[0] if len(options.runs) == 1 else Path()) / FILE
    page = Page(options.episodes)
    pools = write_page(page, roots, out, options.every if options.watch else None, options.pool)
    _say(page, out)
    if options.watch:
        print(f"following; the page loads itself again every {options.every:g} s. Ctrl-C ends it", flush=True)
        try:
            while True:
                wait(options.every)
                write_page(page, roots, out, options.every, options.pool)
        except KeyboardInterrupt:
            pools = write_page(page, roots, out, None, options.pool)  # the last state, which stays as it is
            _say(page, out)
    if options.pool:
        write_durably(out.with_name(POOLED), json.dumps([pool.payload() for pool in pools], indent=2).encode())
        console = Console()
        for pool in pools:
            console.print(pool.table())
    return 0


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
    parser.add_argument(
        "--out", type=Path, help="the file; default: report.html in the folder that is given, of several in this one"
    )
    parser.add_argument(
        "--pool",
        action="store_true",
        help="show runs that differ in nothing but their seed as a mean with its interval, too; print the table of "
        f"pass^k over them, and write it to {POOLED} beside the page",
    )
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
