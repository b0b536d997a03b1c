"""Dashboards get dialogues, results files, exports and summaries, each once, from what a run has written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tau2_lightning.callbacks.dashboards import Dashboards, keep_policy
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.telemetry.dashboards import ShownDialogue
from tests.report.made_run import batch, episode, write_episodes


class Board:
    """A `Dashboard` that notes what it is given."""

    def __init__(self) -> None:
        self.dialogues: list[tuple[str, int, int]] = []
        self.files: list[tuple[str, list[str], list[str], str]] = []
        self.summaries: list[tuple[int, dict[str, float]]] = []

    def show_dialogues(self, kind: str, step: int, dialogues: Sequence[ShownDialogue]) -> None:
        self.dialogues.append((kind, step, len(dialogues)))

    def keep_files(
        self, kind: str, name: str, paths: Sequence[Path], *, aliases: Sequence[str] = (), how: str = "upload"
    ) -> None:
        self.files.append((kind, [path.name for path in paths], list(aliases), how))

    def keep_summary(self, step: int, values: Mapping[str, float]) -> None:
        self.summaries.append((step, dict(values)))

    def where(self) -> str:
        return "here"


class Run:
    """A run folder, and a callback that sees steps and validations of it."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.folder, self.board = RunFolder(root), Board()
        self.folder.results.mkdir(parents=True, exist_ok=True)
        chosen: dict[str, Any] = {"dialogues": 4, "every_n_steps": 1, "exports": "reference"} | options
        self.callback = Dashboards(self.folder, **chosen)
        self.trainer: Any = SimpleNamespace(
            is_global_zero=True, loggers=[object(), self.board], callbacks=[self.callback]
        )
        self.module: Any = SimpleNamespace(weights_version=0, last_evaluation={})

    def begin(self) -> None:
        self.callback.setup(self.trainer, self.module, "fit")

    def step(self) -> None:
        self.module.weights_version += 1
        self.callback.on_train_batch_end(self.trainer, self.module, None, None, 0)

    def validate(self, value: float) -> None:
        self.module.last_evaluation = {"metrics": {"eval/mock/test/pass^1": value}}
        self.callback.on_validation_end(self.trainer, self.module)

    def export(self, name: str, *, best: bool = False) -> None:
        (self.folder.exports / name).mkdir(parents=True, exist_ok=True)
        if best:
            (self.folder.exports / "best.json").write_text(json.dumps({"export": name}))

    def end(self) -> None:
        self.callback.teardown(self.trainer, self.module, "fit")


def test_a_bounded_number_of_dialogues_of_every_batch_is_shown_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin()
    write_episodes(tmp_path, batch(0))
    run.step()
    run.step()  # a thread has not written the second batch yet
    write_episodes(tmp_path, batch(1))
    run.step()
    write_episodes(tmp_path, [episode(3, 0, kind="validate", status="validated", number=1)], number=1)
    run.validate(0.5)
    write_episodes(tmp_path, batch(2))
    run.end()
    run.end()
    assert run.board.dialogues == [("train", 0, 4), ("train", 1, 4), ("validate", 3, 1), ("train", 2, 4)]


def test_every_second_batch_or_none(tmp_path: Path) -> None:
    second, none = Run(tmp_path, every_n_steps=2), Run(tmp_path, dialogues=0)
    for run in (second, none):
        run.begin()
    for step in range(4):
        write_episodes(tmp_path, batch(step))
        second.step()
        none.step()
    assert [step for _, step, _ in second.board.dialogues] == [0, 2]
    assert none.board.dialogues == []


def test_what_earlier_starts_have_written_is_not_shown_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.results.mkdir()
    (folder.results / "01_mock_test_version0.json").touch()
    write_episodes(tmp_path, [episode(0, 0, kind="validate", status="validated", number=1)], number=1)
    run = Run(tmp_path)
    run.export("step2", best=True)
    run.begin()
    run.validate(0.5)
    run.end()
    assert run.board.dialogues == [] and run.board.files == []


def test_results_and_exports_are_kept_as_versions(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin()
    (run.folder.results / "01_mock_test_version0.json").touch()
    run.validate(0.25)
    run.export("step2")
    run.export("step4.partial")
    run.step()
    run.export("step2", best=True)
    run.step()
    run.export("step4", best=True)
    run.end()
    keep_policy(run.trainer, run.folder.policy)
    assert run.board.files == [
        ("results", ["01_mock_test_version0.json"], [], "upload"),
        ("model", ["step2"], ["step2"], "reference"),
        ("model", ["step2"], ["step2", "best"], "reference"),
        ("model", ["step4"], ["step4", "best"], "reference"),
        ("model", ["policy"], ["final"], "reference"),
    ]


@pytest.mark.parametrize(("exports", "expected"), [("none", []), ("upload", ["upload", "upload"])])
def test_exports_may_be_copied_or_left_out(tmp_path: Path, exports: str, expected: list[str]) -> None:
    run = Run(tmp_path, exports=exports)
    run.begin()
    run.export("step2")
    run.end()
    keep_policy(run.trainer, run.folder.policy)
    assert [how for *_, how in run.board.files] == expected


def test_the_summary_has_the_best_score_and_the_change(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin()
    run.validate(0.25)
    run.module.weights_version = 5
    run.validate(0.75)
    run.module.weights_version = 10
    run.validate(0.5)
    first = {"best/pass^1": 0.25, "best/step": 0.0, "start/pass^1": 0.25, "newest/pass^1": 0.25}
    assert run.board.summaries[0] == (0, first)
    last = {"best/pass^1": 0.75, "best/step": 5.0, "start/pass^1": 0.25, "newest/pass^1": 0.5, "change/pass^1": 0.25}
    assert run.board.summaries[-1] == (10, last)


def test_nothing_is_read_for_other_loggers_and_on_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tau2_lightning.callbacks.dashboards.read_episodes", lambda _: pytest.fail("read"))
    write_episodes(tmp_path, batch(0))
    for changed in ({"loggers": [object()]}, {"is_global_zero": False}):
        run = Run(tmp_path)
        vars(run.trainer).update(changed)
        run.begin()
        run.step()
        run.validate(0.5)
        run.end()
        keep_policy(run.trainer, run.folder.policy)
        assert not run.board.dialogues and not run.board.files and not run.board.summaries


@pytest.mark.parametrize("wrong", [{"dialogues": -1}, {"every_n_steps": 0}, {"exports": "all"}])
def test_wrong_values_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Run(tmp_path, **wrong)
