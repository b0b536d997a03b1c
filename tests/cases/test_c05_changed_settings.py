"""C5: a resumed run has its own optimizer settings and says what changed; what cannot be carried over is refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import orjson
import pytest

from tau2_lightning.errors import ConfigError
from tau2_lightning.run import policy as run_policy
from tau2_lightning.run.resuming import changes, tell_of_tasks
from tau2_lightning.strategy.checkpoint import read_meta
from tests.cases.runs import Runs
from tests.run.own_parts import Watching

SAID = "resuming with other settings (checkpoint -> now): "


@pytest.fixture(scope="module")
def trained(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch of two batches."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        Runs(policy, root, patch)("trainer.max_epochs=1", "econfig.user_llm_api_key=sk-hidden")
    return root


@pytest.fixture
def runs(trained: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    shutil.copytree(trained / "e", tmp_path / "e")
    return Runs(policy, tmp_path, monkeypatch)


def said(captured: str) -> list[str]:
    line = next((line for line in captured.splitlines() if line.startswith(SAID)), None)
    return [] if line is None else line.removeprefix(SAID).split("; ")


def test_c05_new_optimizer_settings_hold_and_are_said(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["lr=1e-6", "betas=[0.8,0.9]", "weight_decay=0.3", "eps=1e-7"]
    runs("ckpt_path=last", "trainer.max_epochs=2", *(f"actor.optimizer.{word}" for word in words))
    told = said(capsys.readouterr().err)
    assert "actor.optimizer.lr: 0.001 -> 1e-06" in told and "trainer.max_epochs: 1 -> 2" in told
    assert {one.partition(":")[0] for one in told} >= {f"actor.optimizer.{word.partition('=')[0]}" for word in words}
    (group,) = read_meta(runs.checkpoints / "step4.ckpt")["optimizers"][0]["groups"]
    kept = {key: group[key] for key in ("initial_lr", "lr", "betas", "weight_decay", "eps")}
    assert kept == {"initial_lr": 1e-6, "lr": 1e-6, "betas": (0.8, 0.9), "weight_decay": 0.3, "eps": 1e-7}
    with (runs.folder / "metrics" / "metrics.csv").open() as file:
        rates = [float(row["optim/lr"]) for row in csv.DictReader(file) if row.get("optim/lr")]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-6, 1e-6], rel=1e-6)


def test_c05_without_a_change_nothing_is_said(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs("ckpt_path=last", "trainer.max_epochs=1", "econfig.user_llm_api_key=sk-other")
    assert said(capsys.readouterr().err) == []
    stored = read_meta(runs.checkpoints / "step2.ckpt")["configuration"]
    assert b"sk-hidden" not in orjson.dumps(stored), "keys are not stored"


def test_c05_other_numbers_are_said_and_the_steps_are_counted_right(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train_dataset.batches_per_epoch=3",
        "algorithm.eps_clip=0.3",
        "callbacks.mine._target_=tests.run.own_parts.Watching",
    ]
    service = runs("ckpt_path=last", "trainer.max_epochs=2", "actor.optimizer.final_lr_fraction=0.5", *words)
    told = said(capsys.readouterr().err)
    assert "train_dataset.batches_per_epoch: 2 -> 3" in told and any(
        one.startswith("algorithm.eps_clip: ") for one in told
    )
    # One epoch of two batches is done; the second has three.
    assert service.published == [2, 3, 4, 5] and Watching.made[-1].planned == 5
    group = read_meta(runs.checkpoints / "step5.ckpt")["optimizers"][0]["groups"][0]
    assert group["lr"] == pytest.approx(5e-4), "the schedule ends with the last planned batch"


def test_c05_other_adapters_and_another_tokenizer_are_refused_before_anything_heavy(
    runs: Runs, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(policy, other)
    content = orjson.loads((other / "tokenizer.json").read_bytes())
    vocabulary = content["model"]["vocab"]
    a, b, *_ = vocabulary
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_bytes(orjson.dumps(content))
    with pytest.raises(ConfigError, match="was trained on tokens of the tokenizer"):
        Runs(other, tmp_path, monkeypatch)("ckpt_path=last")
    monkeypatch.setattr(run_policy, "prepare_policy", lambda *_: pytest.fail("the policy was prepared"))
    with pytest.raises(ConfigError, match="holds no adapters, but here are adapters of r=4"):
        runs("ckpt_path=last", "actor.lora.r=4")


def test_c05_every_key_that_differs_is_found_once() -> None:
    old = {"seed": 1, "a": {"b": 1, "c": [1]}, "trial_name": "x", "gone": 1}
    new = {"seed": 1, "a": {"b": 2, "c": [1]}, "trial_name": "y", "new": 2}
    assert list(changes(old, new)) == [("a.b", 1, 2), ("gone", 1, "-"), ("new", "-", 2)]


def test_c05_tasks_that_are_played_again_are_counted_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    tell_of_tasks({"drawn": 7})
    assert not capsys.readouterr().err
    tell_of_tasks({"drawn": 7, "again": [["mock", name] for name in "abcd"]})
    told = "resuming: 4 tasks were begun and not trained on, they are played again: a, b, c, ...\n"
    assert capsys.readouterr().err == told
