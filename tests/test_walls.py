"""The walls of docs/architecture.md hold, and each check of them fails on a planted fault."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tau2_lightning"
LONGEST_FILE = 300
LONGEST_MEDIAN = 120
# Lightning's two objects are what a newcomer reads first.
LONGEST_LIGHTNING_OBJECT = 200


def line_counts() -> dict[str, int]:
    return {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}


def test_files_are_short():
    counts = line_counts()
    assert not {name: n for name, n in counts.items() if n > LONGEST_FILE}
    assert statistics.median(counts.values()) < LONGEST_MEDIAN


@pytest.mark.parametrize("name", ["module.py", "datamodule.py"])
def test_lightning_objects_fit_on_a_few_screens(name: str):
    assert line_counts()[f"tau2_lightning/{name}"] < LONGEST_LIGHTNING_OBJECT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's modules in a folder of their own, to plant faults in."""
    shutil.copytree(PACKAGE, tmp_path / "tau2_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(program: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def plant(copy: Path, module: str, line: str) -> None:
    path = copy / "tau2_lightning" / module
    path.write_text(path.read_text() + f"\n\ndef _planted() -> None:\n    {line}\n")


def circles(folder: Path) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, str(ROOT / "tools" / "check_cycles.py")], folder)


def contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"], folder)


def test_no_two_modules_import_each_other():
    done = circles(ROOT)
    assert done.returncode == 0, done.stdout


def test_a_planted_circle_is_found(copy: Path):
    plant(copy, "algorithm/kl.py", "from tau2_lightning.algorithm import grpo")
    plant(copy, "algorithm/grpo.py", "from tau2_lightning.algorithm import kl")
    done = circles(copy)
    assert done.returncode == 1
    assert "tau2_lightning.algorithm.kl" in done.stdout and "tau2_lightning.algorithm.grpo" in done.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("config/limits.py", "from tau2_lightning.run import compose", "the package: calls go down"),
        ("rollout/chat/message.py", "from tau2_lightning.rollout.session import tree", "rollout: calls go down"),
        (
            "rollout/engines.py",
            "from tau2_lightning.strategy import mesh",
            "rollout and strategy do not know each other",
        ),
        ("policy/loading.py", "import tau2", "only environment imports tau2"),
        ("policy/loading.py", "import vllm", "import vllm"),
        ("rollout/engine/in_vllm/auth.py", "from tau2_lightning import errors", "what is loaded inside vLLM"),
        ("rollout/engine/in_sglang/launch.py", "from tau2_lightning import errors", "what runs inside SGLang"),
        ("rollout/engine/sglang/client.py", "import sglang.srt", "imports sglang"),
    ],
)
def test_a_planted_import_breaks_its_contract(copy: Path, module: str, line: str, broken: str):
    plant(copy, module, line)
    done = contracts(copy)
    assert done.returncode == 1
    assert any(broken in text and "BROKEN" in text for text in done.stdout.splitlines()), done.stdout


def linter(folder: Path) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "."], folder)


def test_nothing_is_hidden_from_the_contracts(copy: Path):
    """They read import statements, in folders that are packages: the linter refuses what they would not see."""
    assert linter(copy).returncode == 0
    plant(copy, "config/flat.py", "import importlib\n    importlib.import_module('tau2_lightning.run.compose')")
    hidden = copy / "tau2_lightning" / "rollout" / "no_package"
    hidden.mkdir()
    (hidden / "module.py").write_text("from tau2_lightning.run import compose as compose\n")
    done = linter(copy)
    assert done.returncode == 1
    assert "config/flat.py" in done.stdout and "TID251" in done.stdout
    assert "no_package/module.py" in done.stdout and "INP001" in done.stdout
