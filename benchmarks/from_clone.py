"""Measures the way from ``git clone`` to an opened report of the main job, and where the minutes go.

    python benchmarks/from_clone.py [--source REPOSITORY] [--folder FOLDER] [--venv VENV] [domain=telecom ...]

It clones the repository into ``FOLDER``, which must not exist, installs as ``make setup`` does, runs the main job with
the words that are given, writes its report and opens that in a headless chromium. Nothing is cached there, but pip may
have downloaded packages before, and the first start compiles bytecode: both are part of what a newcomer sees. With
``--venv`` an environment is used that is there already, and nothing is installed.

Prints a table for the documentation; the last line is JSON. Measure on an idle machine: the table says how busy it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TRIAL = ["experiment_name=from-clone", "trial_name=first"]


def timed(log: Path, words: Sequence[str], folder: Path) -> float:
    """Wall seconds of a command, whose output goes to ``log``. Raises SystemExit naming the log when it fails."""
    began = time.perf_counter()
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with log.open("w") as file:
        done = subprocess.run(list(words), cwd=folder, env=kept, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}; see {log}")
    return time.perf_counter() - began


def opened(page: Path) -> float | None:
    """Seconds until a headless chromium shows ``page``; None where there is no chromium or no Playwright."""
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if program is None:
        return None
    began = time.perf_counter()
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        shown = browser.new_page()
        shown.goto(page.as_uri())
        shown.wait_for_selector("html[data-ready]", timeout=60_000)
        seconds = time.perf_counter() - began
        browser.close()
    return seconds


def rows_of(measured: Mapping[str, float | None], phases: Mapping[str, float]) -> list[tuple[str, float | None]]:
    """The table's rows: the commands, with the main job by its own ``phases`` (seconds), and the sum."""
    job = measured["main job"] or 0.0
    rows: list[tuple[str, float | None]] = [(name, measured[name]) for name in ("git clone", "install")]
    rows.append(("main job", job))
    rows += [(f"- {name}", seconds) for name, seconds in sorted(phases.items(), key=lambda one: -one[1])]
    rows.append(("- start, checks, end", job - sum(phases.values())))
    rows += [(name, measured[name]) for name in ("report", "open it")]
    return [*rows, ("all", sum(value or 0.0 for value in measured.values()))]


def table(rows: Sequence[tuple[str, float | None]]) -> str:
    """The rows as Markdown, in minutes and as shares of the whole."""
    whole = rows[-1][1] or 1.0
    lines = ["| step | minutes | share |", "|---|---:|---:|"]
    for name, seconds in rows:
        found = "not measured | " if seconds is None else f"{seconds / 60:.2f} | {100 * seconds / whole:.0f} %"
        lines.append(f"| {name} | {found} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=str(ROOT), help="what git clones (default: this repository)")
    parser.add_argument("--folder", type=Path, help="a new folder for all of it (default: a temporary one, removed)")
    parser.add_argument("--venv", type=Path, help="an environment to use instead of installing one")
    parser.add_argument("words", nargs="*", default=["domain=telecom"], help="words of the main job")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary) / "all").absolute()
        folder.mkdir(parents=True)
        busy = os.getloadavg()[0]
        clone, run = folder / "clone", folder / "clone" / "outputs" / "from-clone" / "first"
        measured: dict[str, float | None] = {
            "git clone": timed(folder / "clone.log", ["git", "clone", "--quiet", options.source, str(clone)], folder)
        }
        if options.venv is None:
            measured["install"] = timed(folder / "install.log", ["make", "setup"], clone)
        else:
            measured["install"] = None
            (clone / ".venv").symlink_to(options.venv.absolute())
        python = str(clone / ".venv" / "bin" / "python")
        job = [python, "-m", "tau2_lightning.train", *options.words, *TRIAL]
        measured["main job"] = timed(folder / "job.log", job, clone)
        report = [python, "-m", "tau2_lightning.report", str(run)]
        measured["report"] = timed(folder / "report.log", report, clone)
        measured["open it"] = opened(run / "report.html")
        ended = json.loads((run / "report.json").read_text())
        size = (run / "report.html").stat().st_size
    rows = rows_of(measured, ended["seconds"])
    print(table(rows))
    print(f"\n{' '.join(options.words)}; {os.cpu_count()} cores, load {busy:.1f} at the beginning; page {size} bytes")
    print(json.dumps({"seconds": dict(rows), "cores": os.cpu_count(), "load": busy, "page_bytes": size}))


if __name__ == "__main__":
    main()
