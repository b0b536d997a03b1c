"""The notebook of examples/: every cell runs, and leaves what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.reference_models import ReferenceModels
from tests.e2e.test_main_job import words  # noqa: F401  # the session's engine and small data

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
SECONDS = 600  # of one cell


def executed(folder: Path, more: list[str]) -> tuple[Any, Path]:
    """The notebook after its execution in ``folder`` with ``more`` words, and the folder of its run."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (make setup-dev)")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "examples" / "from_python.ipynb", 4)
    if more:
        (at,) = (n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(f"words += {more!r}"))
    place = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=place).execute()
    (report,) = folder.rglob("report.html")
    return notebook, report.parent


def said(notebook: Any) -> str:
    """What the cells have printed."""
    return "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ()))


def check(notebook: Any, run: Path) -> None:
    text = said(notebook)
    assert "step 1: reward" in text and "after: pass^1" in text, text
    assert str(run / "report.html") in text
    assert len(list((run / "rollouts").glob("train-*.parquet"))) >= 1 and (run / "metrics" / "metrics.csv").is_file()
    assert len(list((run / "results").glob("*.json"))) == 2
    assert not notebook.cells[-1].outputs, "the end of the engine is silent"


def test_the_notebook_runs(words: list[str], reference: ReferenceModels, tmp_path: Path) -> None:  # noqa: F811
    """As printed, but with the session's engine and a policy that it can serve."""
    out = ("train_dataset", "valid_dataset", "output_dir", "cache_dir", "trainer.progress")
    kept = [word for word in words if not word.startswith(out)]
    check(*executed(tmp_path, [*kept, f"actor.path={reference.folders['A']}"]))


@pytest.mark.slow
def test_the_notebook_runs_as_it_is(tmp_path: Path) -> None:
    """With the embedded policy and an engine of its own."""
    check(*executed(tmp_path, []))
