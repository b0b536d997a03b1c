"""A headless chromium for the tests that open a report. They are skipped, with the reason, where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.report.__main__ import main

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A running browser without a network. Of one module: while it runs, its event loop lets no other one run."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is installed (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Opened]:
    """``opened(run, ..., at="#tab=episodes")`` makes the report of runs and opens it from the disk.

    At the end of the test it fails if the page asked for any other address, or raised or logged an error.
    """
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_report(*runs: Path, at: str = "", options: tuple[str, ...] = (), **context: Any) -> Any:
        out = tmp_path / "report.html"
        if runs:
            assert main([*map(str, runs), "--out", str(out), *options]) == 0
        contexts.append(chromium.new_context(offline=True, viewport={"width": 1400, "height": 900}, **context))
        page = contexts[-1].new_page()
        page.on(
            "request",
            lambda request: wrong.append(request.url) if request.url.partition("#")[0] != out.as_uri() else None,
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
        page.goto(out.as_uri() + at)
        page.wait_for_selector("html[data-ready]", timeout=20_000)
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert not wrong
