"""`train.run` with real policy, strategy, Trainer and files; only the engine and its episodes are made up."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from tau2_lightning.environment.identity import tau2_version
from tau2_lightning.strategy.checkpoint import read_meta
from tests.fake_service import FakeService
from tests.jobs import Job, run_job, small_policy
from tests.run.own_parts import Watching


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


@pytest.fixture
def job(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Runs the main job in ``tmp_path``/e/t; returns the service that replaced the engine."""

    def run(*words: str) -> FakeService:
        own = [
            "domain=mock", "actor.optimizer.lr=1e-3", "actor.optimizer.warmup_steps=0", "valid_dataset.num_trials=1",
            "train_dataset.batches_per_epoch=2", "trainer.max_epochs=2", "~callbacks.results",
            "trainer.save_top_k=1",
        ]  # fmt: skip
        service = run_job(policy, tmp_path, monkeypatch, *own, *words)
        assert service.started and service.closed
        return service

    return run


def rows(tmp_path: Path, name: str = "metrics", *, of: str = "loss/mean") -> list[dict[str, str]]:
    """The lines of a CSV logger that have a value for ``of``."""
    with (tmp_path / "e" / "t" / name / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get(of)]


def test_a_run_validates_trains_validates_and_leaves_its_files(job: Job, tmp_path: Path) -> None:
    service = job()
    assert service.published == [1, 2, 3, 4] and service.evaluated == 2
    run = tmp_path / "e" / "t"
    assert (run / "report.json").is_file() and (run / "policy" / "config.json").is_file()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step4.ckpt"]
    assert len(rows(tmp_path)) == 4
    assert [float(row["time/sync/load"]) for row in rows(tmp_path, of="time/sync/load")] == [pytest.approx(0.4)] * 4


def test_a_callback_and_a_logger_of_the_users_work_beside_ours(job: Job, tmp_path: Path) -> None:
    own = "tests.run.own_parts"
    job(f"callbacks.mine._target_={own}.Watching", f"logger.mine._target_={own}.OwnLogger", "logger.mine.name=own")
    mine = Watching.made[-1]
    assert mine.versions == [1, 2, 3, 4] and mine.planned == 4 and mine.scores == [1.0, 1.0]
    assert mine.lines == ["idle"] * 4
    assert mine.folder.root == tmp_path / "e" / "t"
    # The callback has the same dictionary, to which the weight sync adds its metrics later.
    assert all({"loss/mean", "reward/mean", "time/sync/load"} <= metrics.keys() for metrics in mine.metrics)
    assert len(rows(tmp_path, "own")) == len(rows(tmp_path)) == 4


def test_without_callbacks_a_run_writes_no_checkpoint(job: Job, tmp_path: Path) -> None:
    job("~callbacks.checkpoints", "~callbacks.progress", "trainer.max_epochs=1")
    assert not list((tmp_path / "e" / "t").rglob("*.ckpt"))
    assert (tmp_path / "e" / "t" / "policy" / "config.json").is_file()


def test_max_steps_counts_optimizer_steps_and_a_resumed_run_goes_on_to_a_larger_one(job: Job, tmp_path: Path) -> None:
    service = job("trainer.max_steps=3", "trainer.max_epochs=-1")
    assert service.published == [1, 2, 3]
    checkpoints = tmp_path / "e" / "t" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step3.ckpt"]
    again = job("trainer.max_steps=5", "trainer.max_epochs=-1", "ckpt_path=last")
    # The checkpoint's weights, for the validation before and for training, then those of the two remaining batches.
    assert again.published == [3, 3, 4, 5]
    assert {path.name for path in checkpoints.iterdir()} == {"step3.ckpt", "step5.ckpt"}


def test_max_steps_ends_with_the_batch_under_way_and_the_schedule_knows_it(job: Job, tmp_path: Path) -> None:
    words = ["actor.ppo_n_minibatches=2", "trainer.max_epochs=9", "actor.optimizer.final_lr_fraction=0.5"]
    service = job("trainer.max_steps=3", *words, "trainer.validate_before=false")
    assert service.published == [1, 2], "two optimizer steps a batch: the third ends with the fourth"
    rates = [float(row["optim/lr"]) for row in rows(tmp_path)]
    assert rates[-1] == pytest.approx(5e-4) and rates[0] > rates[-1]


def test_max_time_ends_training_and_a_resumed_run_has_the_rest(job: Job) -> None:
    slow = ["+callbacks.slow._target_=tests.run.own_parts.Slow", "+callbacks.slow.seconds=0.6", "trainer.max_epochs=-1"]
    short = [*slow, "trainer.max_time={seconds: 1}", "trainer.validate_before=false", "trainer.validate_after=false"]
    service = job(*short)
    done = len(service.published)
    assert 1 <= done <= 2
    # Lightning checks the time after a batch: the checkpoint's weights are published, and those of one batch.
    assert job(*short, "ckpt_path=last").published == [done, done + 1]
    assert len(job(*short, "trial_name=other", "trainer.min_steps=4").published) == 4


def test_limit_val_batches_zero_switches_validation_off(job: Job) -> None:
    service = job("trainer.limit_val_batches=0", "trainer.validate_every_n_epochs=1", "trainer.max_epochs=1")
    assert service.evaluated == 0 and service.published == [1, 2]
    assert job("trainer.validate_every_n_epochs=1", "trial_name=other", "trainer.max_epochs=1").evaluated == 3


@pytest.mark.parametrize("name", ["simple", "advanced", "pytorch"])
def test_a_profiler_writes_into_the_runs_logs(job: Job, tmp_path: Path, name: str) -> None:
    job(f"trainer.profiler={name}", "trainer.max_epochs=1", "trainer.limit_val_batches=0")
    (path,) = (tmp_path / "e" / "t" / "logs").glob("fit-profile*.txt")
    assert "run_training_batch" in path.read_text() or "training_step" in path.read_text()


def test_log_every_n_steps_thins_the_lines_out(job: Job, tmp_path: Path) -> None:
    job("trainer.log_every_n_steps=2", "trainer.limit_val_batches=0")
    assert len(rows(tmp_path)) == 2


def test_detect_anomaly_names_the_operation(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tau2_lightning.module import GRPOModule

    seen: list[bool] = []

    def loss(self: GRPOModule, outputs: Any, microbatch: Any) -> Any:
        seen.append(torch.is_anomaly_enabled())
        return self.algorithm.loss(outputs.logprobs, outputs.entropy, microbatch)

    monkeypatch.setattr(GRPOModule, "_loss", loss)
    job("trainer.detect_anomaly=true", "trainer.max_epochs=1", "trainer.limit_val_batches=0")
    job("trainer.max_epochs=1", "trainer.limit_val_batches=0", "trial_name=other")
    assert seen == [True, True, False, False]


def test_max_epochs_bounds_min_epochs_demands(job: Job) -> None:
    slow = ["+callbacks.slow._target_=tests.run.own_parts.Slow", "+callbacks.slow.seconds=0.6"]
    service = job(*slow, "trainer.max_time={seconds: 1}", "trainer.min_epochs=2", "trainer.limit_val_batches=0")
    assert service.published == [1, 2, 3, 4]


def offline_record(run: Path) -> bytes:
    """What W&B keeps of the run, once its service, another process, has written it: that is after ``finish``."""
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while file.stat().st_size < 1000 and time.monotonic() < deadline:
        time.sleep(0.1)
    return file.read_bytes()


def test_wandb_runs_offline_without_a_key_beside_the_csv(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr("tau2_lightning.run.loggers._has_wandb_key", lambda: False)
    job("logger=wandb", "trainer.max_epochs=1", "trainer.limit_val_batches=0", "econfig.user_llm_api_key=sk-hidden")
    assert wandb.run is None, "finished, so that the next run of this process has one of its own"
    run = tmp_path / "e" / "t"
    kept = offline_record(run)
    assert len(kept) > 1000 and b"sk-hidden" not in kept
    assert len(rows(tmp_path)) == 2


def test_a_checkpoint_that_a_callback_writes_after_a_batch_holds_the_version_of_its_weights(
    job: Job, tmp_path: Path
) -> None:
    words = ["_target_=lightning.pytorch.callbacks.ModelCheckpoint", "every_n_train_steps=1", "save_top_k=-1"]
    words += [f"dirpath={tmp_path / 'mine'}", "filename='s{step}'", "auto_insert_metric_name=false"]
    job(*(f"callbacks.mine.{word}" for word in words), "trainer.max_epochs=1")
    assert {p.stem: read_meta(p)["weights_version"] for p in (tmp_path / "mine").iterdir()} == {"s1": 1, "s2": 2}


def test_the_stamp_is_in_the_report_the_checkpoint_and_what_loggers_keep(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tau2_lightning.run.loggers._has_wandb_key", lambda: False)
    job("logger=wandb", "trainer.max_epochs=1", "valid_dataset.limit=2")
    run = tmp_path / "e" / "t"
    evaluations = json.loads((run / "report.json").read_text())["evaluations"]
    stamp = evaluations["after"]["stamp"]
    assert evaluations["before"]["stamp"] == stamp and stamp["n_tasks"] == 2 and stamp["tau2"] == tau2_version()
    trained = read_meta(run / "checkpoints" / "step2.ckpt")["Tau2DataModule"]["stamp"]
    assert trained["seed"] == 1 and trained["domains"]["mock"]["split"] == "train"
    kept = yaml.safe_load((run / "metrics" / "hparams.yaml").read_text())["stamp"]
    assert kept["training"] == trained and kept["validation"]["mock"]["tasks"] == stamp["tasks"]
    assert stamp["tasks"].encode() in offline_record(run)


def test_several_domains_are_trained_validated_and_reported_one_by_one(job: Job, tmp_path: Path) -> None:
    service = job(
        "domain=[mock,airline]", "econfig.user=scripted", "econfig.solo_mode=false", "domains.airline.weight=3",
        "train_dataset.batch_size=4", "trainer.max_epochs=1", "valid_dataset.limit=2", "logger=csv",
    )  # fmt: skip
    assert service.evaluated == 4, "two domains, before and after"
    run = tmp_path / "e" / "t"
    evaluations = json.loads((run / "report.json").read_text())["evaluations"]
    assert list(evaluations) == ["before/mock", "before/airline", "after/mock", "after/airline"]
    state = read_meta(run / "checkpoints" / "step2.ckpt")["Tau2DataModule"]
    assert state["sampler"] == {"drawn": 8} and state["stamp"]["domains"]["airline"]["weight"] == 3.0
    validated = rows(tmp_path, of="eval/macro/pass^1")
    assert [float(row["eval/macro/pass^1"]) for row in validated] == [1.0, 1.0]
    assert all(row["eval/mock/test/pass^1"] == row["eval/airline/test/pass^1"] == "1.0" for row in validated)
