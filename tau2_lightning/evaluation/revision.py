"""Which revision of this program runs."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

GIT_SECONDS = 10.0  # at most, per question


@cache
def revision() -> str:
    """The package's version; in a git checkout also the commit, with ``+changes`` where the package differs from it."""
    try:
        package = version("tau2-lightning")
    except PackageNotFoundError:
        package = "unknown"
    top = Path(__file__).parents[2]
    commit = _git(top, "rev-parse", "--short=12", "HEAD") if (top / ".git").exists() else ""
    if not commit:
        return package
    changed = "+changes" if _git(top, "status", "--porcelain", "--untracked-files=no", "--", "tau2_lightning") else ""
    return f"{package} git {commit}{changed}"


def _git(folder: Path, *words: str) -> str:
    try:
        command = ["git", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
