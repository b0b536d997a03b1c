"""Exports during training: in the background, the newest and the best stay, and an error of writing ends the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tau2_lightning.callbacks.exports import PolicyExports
from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.policy.loading import load_tokenizer
from tau2_lightning.policy.written import PolicyFiles
from tests.fake_service import FakeService
from tests.jobs import run_job, small_policy

Job = Callable[..., FakeService]
EVERY = ("domain=mock", "train_dataset.batches_per_epoch=3", "trainer.max_epochs=2", "trainer.validate_before=false")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


@pytest.fixture
def job(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return lambda *words: run_job(policy, tmp_path, monkeypatch, *EVERY, *words)


def exports(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "e" / "t" / "exports").iterdir())


def test_none_without_the_key(job: Job, tmp_path: Path) -> None:
    job("trainer.limit_val_batches=0")
    assert not (tmp_path / "e" / "t" / "exports").exists()


def test_each_is_the_policy_of_its_step_and_the_newest_stay(job: Job, tmp_path: Path) -> None:
    job("trainer.limit_val_batches=0", "trainer.export_every_n_steps=2", "trainer.save_top_k=-1")
    assert exports(tmp_path) == ["step2", "step4", "step6"]
    folder = tmp_path / "e" / "t"
    last, final = (load_file(path / "model.safetensors") for path in (folder / "exports" / "step6", folder / "policy"))
    assert last.keys() == final.keys() and all(torch.equal(last[name], final[name]) for name in final)
    earlier = load_file(folder / "exports" / "step2" / "model.safetensors")
    assert any(not torch.equal(earlier[name], final[name]) for name in final)
    assert load_tokenizer(folder / "exports" / "step2").chat_template
    job("trainer.limit_val_batches=0", "trainer.export_every_n_steps=2", "trial_name=two", "trainer.save_top_k=1")
    assert [path.name for path in (folder.parent / "two" / "exports").iterdir()] == ["step6"]


def test_the_best_by_validation_stays_beside_the_newest(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.75, 0.25, 0.25])
    monkeypatch.setattr("tau2_lightning.callbacks.exports.validated_score", lambda _: next(scores))
    words = [
        "trainer.validate_every_n_epochs=1",
        "trainer.export_every_n_steps=5",
        "trainer.save_top_k=1",
        "~callbacks.results",
    ]
    job(*words, "trainer.max_epochs=4", "trainer.validate_after=false")
    assert exports(tmp_path) == ["best.json", "step10", "step6"]
    best = json.loads((tmp_path / "e" / "t" / "exports" / "best.json").read_text())
    assert best == {"export": "step6", "pass^1": 0.75, "weights_version": 6}


def test_training_goes_on_meanwhile_and_later_steps_do_not_change_it(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, write = threading.Event(), PolicyFiles.write
    begun: list[str] = []

    def later(self: PolicyFiles, folder: Path, *args: Any) -> None:
        begun.append(folder.name)
        assert folder.name != "step1" or gate.wait(60)
        write(self, folder, *args)

    class Opens(FakeService):
        def publish(self, version: int, buckets: Any) -> Any:
            if version == 3:  # two steps after the export began
                assert begun == ["step1"] and not (tmp_path / "e" / "t" / "exports" / "step1").exists()
                gate.set()
            return super().publish(version, buckets)

    kept: dict[str, torch.Tensor] = {}

    def once(self: PolicyExports, trainer: Any, module: Any, *_: Any) -> None:
        if module.weights_version == 1:
            self._export(trainer, module)
            kept.update({name: weight.detach().clone() for name, weight in module.policy.state_dict().items()})

    monkeypatch.setattr(PolicyFiles, "write", later)
    monkeypatch.setattr("tests.jobs.FakeService", Opens)
    monkeypatch.setattr(PolicyExports, "on_train_batch_end", once)
    job("trainer.limit_val_batches=0", "trainer.export_every_n_steps=100", "trainer.max_epochs=1")
    written = load_file(tmp_path / "e" / "t" / "exports" / "step1" / "model.safetensors")
    final = load_file(tmp_path / "e" / "t" / "policy" / "model.safetensors")
    assert gate.is_set() and all(torch.equal(written[name], kept[name]) for name in written)
    assert any(not torch.equal(written[name], final[name]) for name in written)


@pytest.mark.parametrize("after", [1, 3])
def test_an_error_of_writing_surfaces_and_leaves_nothing_torn(
    after: int, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = PolicyFiles.write

    def full(self: PolicyFiles, folder: Path, *args: Any) -> None:
        if folder.name == f"step{after}":
            raise OSError(28, "No space left on device")
        write(self, folder, *args)

    monkeypatch.setattr(PolicyFiles, "write", full)
    with pytest.raises(
        InfrastructureFault, match=r"export: disk_full: .*step\d could not be written: the disk is full"
    ):
        job("trainer.limit_val_batches=0", "trainer.export_every_n_steps=1", "trainer.max_epochs=1")
    assert f"step{after}" not in (exports(tmp_path) if after > 1 else [])
