"""A validation's file names its weights, and a later start of the same trial overwrites no file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tau2_lightning.callbacks.results import ResultsFiles
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.run.compose import load_config


def validate(folder: RunFolder, *versions: int, domains: Sequence[str] = ("mock",)) -> None:
    """One start in ``folder`` that validates these versions of the weights, before any step of its own Trainer."""
    data: Any = SimpleNamespace(newest_evaluations=[])
    trainer: Any = SimpleNamespace(is_global_zero=True, datamodule=data, global_step=0)
    callback, module = ResultsFiles(folder), Any
    for version in versions:
        text = f"start {folder.start}, weights {version}"
        number = data.newest_evaluations[-1].number + 1 if data.newest_evaluations else 1
        told = {"split": "test", "weights_version": version, "number": number}
        data.newest_evaluations = [
            SimpleNamespace(**told, domain=domain, write=lambda path, text=text: path.write_text(text))
            for domain in domains
        ]
        callback.on_validation_end(trainer, module)  # type: ignore[arg-type]


def test_two_starts_of_one_trial_leave_all_their_validations(tmp_path: Path) -> None:
    config = load_config(["domain=mock", f"output_dir={tmp_path}", "trial_name=t"], check=False)
    folder = RunFolder.create(config)
    validate(folder, 0, 20)
    validate(RunFolder.create(config), 20, 40)
    assert {path.name: path.read_text() for path in folder.results.iterdir()} == {
        "01_mock_test_version0.json": "start 1, weights 0",
        "02_mock_test_version20.json": "start 1, weights 20",
        "01_mock_test_version20-2.json": "start 2, weights 20",
        "02_mock_test_version40-2.json": "start 2, weights 40",
    }


def test_every_domain_of_a_validation_has_a_file_with_the_validations_number(tmp_path: Path) -> None:
    config = load_config(["domain=mock", f"output_dir={tmp_path}", "trial_name=t"], check=False)
    folder = RunFolder.create(config)
    validate(folder, 0, 5, domains=("retail", "airline"))
    assert sorted(path.name for path in folder.results.iterdir()) == [
        "01_airline_test_version0.json",
        "01_retail_test_version0.json",
        "02_airline_test_version5.json",
        "02_retail_test_version5.json",
    ]
