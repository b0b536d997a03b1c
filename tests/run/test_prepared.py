"""`tau2_lightning.prepare`: a run from Python, with a Trainer of the user's own and the service replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest

import tau2_lightning
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.prepared import PreparedRun
from tests.fake_service import FakeService, group
from tests.jobs import own_words, small_policy

Prepare = Callable[..., PreparedRun]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> FakeService:
    made = FakeService([group(0, [1.0, 0.0, 0.0, 1.0])], [group(1, [0.0, 1.0, 0.0, 1.0])])
    monkeypatch.setattr("tau2_lightning.rank_zero.RolloutService", lambda *_, **__: made)
    monkeypatch.setattr("tau2_lightning.run.policy.check_prompts", lambda *_: None)
    return made


@pytest.fixture
def words(policy: Path, tmp_path: Path) -> list[str]:
    small = ["train_dataset.batches_per_epoch=2", "valid_dataset.limit=2", "actor.optimizer.warmup_steps=0"]
    return [
        *own_words(policy, tmp_path),
        f"cache_dir={tmp_path / 'cache'}",
        "domain=mock",
        "~callbacks.results",
        *small,
    ]


def trainer_of(run: PreparedRun, **more: Any) -> L.Trainer:
    settings: dict[str, Any] = {"callbacks": run.callbacks(), "logger": run.logger(), "max_epochs": 1, **more}
    return L.Trainer(strategy=run.strategy(), accelerator="cpu", enable_progress_bar=False, **settings)


def test_a_run_leaves_what_the_main_job_leaves_and_goes_on_from_its_checkpoint(
    words: list[str], service: FakeService, tmp_path: Path
) -> None:
    heeded = signal.getsignal(signal.SIGTERM)
    with tau2_lightning.prepare(words) as run:
        assert run.root == tmp_path / "e" / "t" and run.checkpoint is None
        module, data = run.module(), run.datamodule()
        trainer_of(run).fit(module, datamodule=data)
        assert signal.getsignal(signal.SIGTERM) is heeded, "signals are the script's"
    assert service.closed and service.published == [1, 2]
    for name in ("config.yaml", "metrics/metrics.csv", "rollouts/train-000001.parquet", "checkpoints/step2.ckpt"):
        assert (run.root / name).exists(), name
    played = list(tau2_lightning.read_rollouts(run.root, kind="train"))
    assert len(played) == 8 and {one.status for one in played} == {"trained"}
    page = tau2_lightning.write_report(run.root)
    assert page == run.root / "report.html" and "reward/mean" in page.read_text()

    with tau2_lightning.prepare([*words, "ckpt_path=last"]) as again:
        assert again.checkpoint == str(run.root / "checkpoints" / "step2.ckpt")
        module = again.module()
        trainer_of(again, max_epochs=2).fit(module, datamodule=again.datamodule(), ckpt_path=again.checkpoint)
    assert module.weights_version == 4


def test_a_folder_belongs_to_one_run_at_a_time_and_is_free_again(words: list[str], service: FakeService) -> None:
    run = tau2_lightning.prepare(words)
    with pytest.raises(ConfigError, match="is in use by process"):
        tau2_lightning.prepare(words)
    run.close()
    run.close()
    tau2_lightning.prepare(words).close()


def test_what_is_wrong_is_told_at_once_and_holds_no_folder(words: list[str], service: FakeService) -> None:
    with pytest.raises(ConfigError) as error:
        tau2_lightning.prepare([*words, "gconfig.n_sample=3", "trainer.devices=2", "valid_dataset.split=nowhere"])
    assert len(error.value.violations) >= 3
    with pytest.raises(ConfigError, match="actor.path"):
        tau2_lightning.prepare([*words, "actor.path=/no/such/folder"])
    with pytest.raises(ConfigError, match=r"a script is none.*srun or torchrun"):
        tau2_lightning.prepare([*words, "scheduler.type=slurm", "scheduler.slurm.partition=gpu"])
    tau2_lightning.prepare(words).close()


def test_words_of_the_commands_trainer_are_warned_of(
    words: list[str], service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    tau2_lightning.prepare([*words, "trainer.max_epochs=3", "trainer.save_top_k=2"]).close()
    told = capsys.readouterr().err
    assert "trainer.max_epochs=3 is of the command's own Trainer" in told and "give max_epochs to yours" in told
    assert "trainer.save_top_k" not in told, "read by a callback of ours"


def test_every_public_name_is_there() -> None:
    assert all(getattr(tau2_lightning, name) is not None for name in tau2_lightning.__all__)
    assert set(tau2_lightning.__all__) <= set(dir(tau2_lightning))
    with pytest.raises(AttributeError, match="no_such_name"):
        tau2_lightning.no_such_name  # noqa: B018


@pytest.mark.slow
def test_lightning_starts_a_script_for_each_rank(policy: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.run.script_of_two_ranks", str(policy), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (run,) = (tmp_path / "e").iterdir()
    assert done.stdout.strip().splitlines()[-1] == str(run / "report.html")
    assert (run / "checkpoints" / "step2.ckpt").is_dir()
    assert {path.name for path in (run / "rollouts").glob("scores-000001*")} == {
        "scores-000001.parquet", "scores-000001-r001.parquet",
    }  # fmt: skip
