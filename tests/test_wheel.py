"""The wheel holds all that a run needs: it is installed where the repository is not, and plans the main job there."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a release builds it, without the network: its build tool is of the extra ``dev``."""
    pytest.importorskip("hatchling", reason="hatchling is not installed (make setup-dev)")
    out = tmp_path_factory.mktemp("dist")
    offline = ["--no-build-isolation", "--no-deps", "--no-index"]
    build = [sys.executable, "-m", "pip", "wheel", *offline, "-w", str(out), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.glob("tau2_lightning-*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and with the installed dependencies but not the repository."""
    home = tmp_path_factory.mktemp("elsewhere")
    venv.create(home, with_pip=False)
    (packages,) = home.glob("lib/python3*/site-packages")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(packages)
    # A line of a .pth file is added to the path; .pth files in that folder (an editable install) are not read.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return home / "bin" / "python"


def run(python: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(python), "-m", *words]
    return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=300, check=False)


def test_the_wheel_holds_types_configuration_and_assets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "tau2_lightning/py.typed" in names
    shipped = {f"tau2_lightning/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(shipped) > 30 and shipped <= names
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tau2_lightning").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert package <= names
    assert not {name for name in names if name.startswith(("tests/", "docs/", "conf/", "benchmarks/"))}


def test_the_package_comes_from_the_wheel(python: Path, tmp_path: Path) -> None:
    where = "import tau2_lightning, sys; print(tau2_lightning.__file__)"
    found = subprocess.run([str(python), "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True,
                           env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(python.parents[1])


def test_its_configuration_is_printed_elsewhere(python: Path, tmp_path: Path) -> None:
    done = run(python, tmp_path, "tau2_lightning.train", "--cfg", "job", "domain=retail", "experiment=quick")
    assert done.returncode == 0, done.stderr
    assert "batches_per_epoch: 2" in done.stdout and "domain: retail" in done.stdout


def test_the_main_job_is_planned_elsewhere(python: Path, tmp_path: Path) -> None:
    done = run(python, tmp_path, "tau2_lightning.train", "mode=plan", "domain=telecom", "trainer.accelerator=cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "policy: tiny" in done.stdout and "environment: tau2 telecom" in done.stdout
    assert not list(tmp_path.iterdir()), "a plan has written something"
