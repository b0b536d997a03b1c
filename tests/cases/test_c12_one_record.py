"""C12: all starts of a run have one metrics record, in which a replayed step counts once, and one W&B run."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from tau2_lightning.telemetry.record import ContinuedCSV, split
from tests.cases.runs import Runs


def lines(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def steps(path: Path) -> list[int]:
    return [int(row["step"]) for row in lines(path) if row.get("loss/mean")]


def test_c12_a_resumed_run_continues_the_record_and_the_wandb_run(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tau2_lightning.run.loggers._has_wandb_key", lambda: False)
    runs = Runs(policy, tmp_path, monkeypatch)
    runs("logger=wandb", "trainer.save_top_k=-1")
    metrics = runs.folder / "metrics" / "metrics.csv"
    assert steps(metrics) == [0, 1, 2, 3]
    before = lines(metrics)
    # As after a crash: two steps were logged, and not saved.
    shutil.rmtree(runs.checkpoints / "step4.ckpt")
    shutil.rmtree(runs.folder / "policy")
    runs("ckpt_path=last", "logger=wandb", "trainer.max_epochs=3")
    assert steps(metrics) == [0, 1, 2, 3, 4, 5], "each step once"
    assert steps(metrics.with_name("replayed.csv")) == [2, 3], "and what was replaced is kept"
    now = lines(metrics)
    assert [row["loss/mean"] for row in now if row["step"] == "0"] == [before[0]["loss/mean"]]
    assert not (runs.folder / "metrics-2").exists()
    ids = {path.name.rpartition("-")[2] for path in (runs.folder / "wandb").glob("offline-run-*")}
    assert len(ids) == 1, "one W&B run over both starts"


def test_c12_a_validation_does_not_write_into_the_record_of_training(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(policy, tmp_path, monkeypatch)
    runs("trainer.max_epochs=1")
    before = (runs.folder / "metrics" / "metrics.csv").read_bytes()
    runs("mode=validate", "ckpt_path=last", "trainer.limit_val_batches=1")
    assert (runs.folder / "metrics" / "metrics.csv").read_bytes() == before
    assert lines(runs.folder / "metrics-2" / "metrics.csv")


def row(step: int, *, of_a_step: bool) -> dict[str, str]:
    return {"step": str(step)} | ({"loss/mean": "0.1"} if of_a_step else {"eval/mock/test/pass^1": "0.5"})


def test_c12_validations_stay_with_the_steps_that_they_are_of() -> None:
    before, first, second = row(0, of_a_step=False), row(0, of_a_step=True), row(1, of_a_step=True)
    between, after = row(1, of_a_step=False), row(2, of_a_step=False)
    whole = [before, first, second, between, after]
    assert split(whole, 2) == (whole, []), "the validation at the end of the start is of the checkpoint's weights"
    assert split(whole, 1) == ([before, first], [second, between, after])
    assert split(whole, 0) == ([before], [first, second, between, after])


def test_c12_a_validation_that_is_made_again_has_one_line() -> None:
    """A kill came after its line, and before it was in a checkpoint."""
    batches = [row(0, of_a_step=True), row(1, of_a_step=True)]
    before, validated = row(1, of_a_step=False), row(1, of_a_step=False)  # the first is of an earlier start's end
    whole = [batches[0], before, batches[1], validated]
    kept, replayed = split(whole, 2, validates=True)
    assert kept == [batches[0], before, batches[1]] and replayed == [validated] and replayed[0] is validated
    assert split(whole, 2) == (whole, []), "else it stays"
    assert split(kept, 2, validates=True) == (kept, []), "the kill came before"
    unlogged = [batches[0], before]
    assert split(unlogged, 2, validates=True) == (unlogged, []), "nor was the batch logged"


def test_c12_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "metrics.csv").write_text("loss/mean,step\n0.5,0\n0.25,1\n0.1")
    logger = ContinuedCSV(folder, 2)
    logger.log_metrics({"loss/mean": 0.75}, step=2)
    logger.save()
    assert [(one["step"], one["loss/mean"]) for one in lines(folder / "metrics.csv")] == [
        ("0", "0.5"), ("1", "0.25"), ("2", "0.75"),
    ]  # fmt: skip


@pytest.mark.parametrize("at", ["a further column", "a later start"])
def test_c12_a_kill_while_the_record_is_written_anew_loses_nothing(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "metrics"
    logger = ContinuedCSV(folder)
    for step in range(3):
        logger.log_metrics({"loss/mean": 0.5}, step=step)
        logger.save()
    before = (folder / "metrics.csv").read_bytes()

    def killed(self: Path, target: Path) -> Path:
        raise SystemExit(f"killed before {target.name} has its name")

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(SystemExit):
        if at == "a further column":
            logger.log_metrics({"eval/mock/test/pass^1": 1.0}, step=2)
            logger.save()
        else:
            ContinuedCSV(folder, 1).log_metrics({"loss/mean": 0.25}, step=1)
    assert (folder / "metrics.csv").read_bytes() == before
    monkeypatch.undo()
    again = ContinuedCSV(folder, 1)
    assert again.holds(0) and not again.holds(1) and steps(folder / "replayed.csv") == [1, 2]
