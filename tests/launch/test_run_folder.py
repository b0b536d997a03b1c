"""All ranks of a run use one folder; a second start overwrites nothing of the first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.run.compose import load_config

LAUNCHED = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_JOB_ID", "TAU2_LIGHTNING_RUN_DIR")


@pytest.fixture(autouse=True)
def nobody_launched(monkeypatch: pytest.MonkeyPatch):
    for name in LAUNCHED:
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)


def config(tmp_path: Path, *words: str):
    return load_config(["domain=mock", f"output_dir={tmp_path}", "experiment_name=e", *words], check=False)


def test_starts_are_numbered(tmp_path: Path):
    first = RunFolder.create(config(tmp_path, "trial_name=t"))
    second = RunFolder.create(config(tmp_path, "trial_name=t"))
    assert first.root == second.root == tmp_path / "e" / "t"
    assert (first.start, second.start) == (1, 2)
    assert {path.name for path in first.root.glob("config*")} == {"config.yaml", "config-2.yaml"}
    assert (first.report.name, second.report.name) == ("report.json", "report-2.json")


def test_a_rank_that_lightning_started_takes_the_first_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    named_after_the_time = config(tmp_path)
    first = RunFolder.create(named_after_the_time)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("os.getppid", os.getpid)
    monkeypatch.setattr("time.strftime", lambda *_: pytest.fail("it made a name of its own"))
    assert RunFolder.create(named_after_the_time).root == first.root
    assert len(list(first.root.glob("config*"))) == 1


def test_what_an_earlier_run_left_in_the_environment_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    RunFolder.create(config(tmp_path, "trial_name=earlier"))
    monkeypatch.setenv("RANK", "1")  # started by a launcher, itself started by the process of the earlier run
    assert RunFolder.create(config(tmp_path, "trial_name=t")).root == tmp_path / "e" / "t"


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_a_rank_of_another_node_finds_it_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    folder = RunFolder.create(config(tmp_path, "trial_name=t"))
    assert folder.root == tmp_path / "e" / "t"
    assert folder.logs.is_dir() and not list(folder.root.glob("config*")), "rank 0 writes it"


def test_ranks_of_a_slurm_step_agree_on_the_jobs_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_PROCID", "0")
    first = RunFolder.create(config(tmp_path)).root
    monkeypatch.delenv("TAU2_LIGHTNING_RUN_DIR")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert RunFolder.create(config(tmp_path)).root == first == tmp_path / "e" / "job-77"
