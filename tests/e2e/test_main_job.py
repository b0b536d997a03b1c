"""The main job with real parts: tau2, vLLM, proxy, GRPO, weight sync, validation, resume. All tests use one engine."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tau2_lightning import train
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.run.compose import load_config
from tau2_lightning.strategy.checkpoint import read_meta
from tau2_lightning.warm_start.make import warm_start_policy
from tests.e2e.reference_models import ENGINE, MAX_MODEL_LEN, PYTHON, ReferenceModels

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def words(engine_pool: EnginePool, reference: ReferenceModels, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that make every run here use the session's engine, a little data and a folder of its own."""
    server = engine_pool.members[0].client
    folder = tmp_path_factory.mktemp("runs")
    return [
        f"rollout.engine_urls=['{server.url}']",
        f"rollout.engine_api_key={engine_pool.settings.api_key}",
        f"allocation_mode={ENGINE}:d1+archon:d1p1t1",
        "actor=tiny",
        f"output_dir={folder}",
        f"cache_dir={folder}/cache",
        f"gconfig.max_tokens={MAX_MODEL_LEN}",
        "econfig.policy=ticket",
        "econfig.max_steps=30",
        "train_dataset.batch_size=3",
        "train_dataset.batches_per_epoch=1",
        "gconfig.n_samples=4",
        "gconfig.max_new_tokens=24",
        "valid_dataset.limit=4",
        "valid_dataset.num_trials=2",
        "rollout.official_check=0.5",
        "rollout.filter_groups=false",
        # Two steps must change the weights whatever a barely trained policy achieves, so rewards have no baseline.
        "algorithm.reward_bias=-0.5",
        "algorithm.mean_level=none",
        "algorithm.std_level=none",
        "actor.ppo_n_minibatches=1",
        "actor.optimizer.lr=1e-3",
        "actor.optimizer.warmup_steps=0",
        "trainer.max_epochs=2",
        "trainer.progress=plain",
        "logger=csv",
    ]


@pytest.fixture(scope="module")
def policy(words: list[str], reference: ReferenceModels) -> Path:
    """Policy A after a short warm start on telecom, so that episodes have several turns."""
    short = ["warm_start.demonstrations=60", "warm_start.steps=20", "warm_start.tokens_per_step=2048"]
    config = load_config([*words, f"actor.path={reference.folders['A']}", *short])
    return warm_start_policy(config)


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(policy: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(policy / "model.safetensors")


def run_folder(words: list[str], experiment: str, trial: str) -> Path:
    output = next(word for word in words if word.startswith("output_dir=")).partition("=")[2]
    return Path(output) / experiment / trial


@pytest.fixture(scope="module")
def telecom(words: list[str], policy: Path) -> Path:
    """The folder of a finished run of two GRPO steps on telecom."""
    trial = ["experiment_name=e2e", "trial_name=telecom", "trainer.save_top_k=-1"]
    assert train.main([*words, f"actor.path={policy}", *trial]) == 0
    return run_folder(words, "e2e", "telecom")


def test_two_steps_on_telecom_leave_everything_a_run_promises(telecom: Path, policy: Path):
    report = json.loads((telecom / "report.json").read_text())
    assert set(report["evaluations"]) == {"before", "after"}
    assert report["evaluations"]["after"]["summary"]["episodes"] == 8
    assert {"rollout", "train", "weight sync", "validate"} <= set(report["seconds"])
    assert (telecom / "config.yaml").is_file()
    assert len(list((telecom / "results").glob("*.json"))) == 2
    assert len(list((telecom / "checkpoints").glob("*.ckpt"))) == 2
    before, after = weights(policy), weights(telecom / "policy")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_on_policy_ratios_are_one_and_engine_and_trainer_agree(telecom: Path):
    steps = [row for row in metrics(telecom) if row.get("loss/mean")]
    assert len(steps) == 2
    for row in steps:
        assert abs(float(row["ratio/max"]) - 1) < 1e-4
        assert abs(float(row["ratio/mean"]) - 1) < 1e-4
        assert float(row["clip_ratio/region_mean"]) == 0
        assert float(row["off_policy/max"]) == 0
        assert float(row["optim/grad_norm"]) > 0
    guard = [float(row["sync/logp_difference/max"]) for row in metrics(telecom) if row.get("sync/logp_difference/max")]
    assert len(guard) == 2
    assert max(guard) < 1e-3


def test_tau2_evaluate_trajs_gives_the_score_that_the_run_reports(telecom: Path, tmp_path: Path):
    """tau2's own command on the files of both validations: the same rewards, and the pass^1 of the report."""
    from tau2.metrics.agent_metrics import compute_metrics

    from tau2_lightning.environment import tau2_api as api

    files = sorted((telecom / "results").glob("*.json"))
    command = [sys.executable, "-m", "tau2.cli", "evaluate-trajs", *map(str, files), "-o", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    report = json.loads((telecom / "report.json").read_text())
    for file, evaluation in zip(files, report["evaluations"].values(), strict=True):
        ours = api.Results.model_validate_json(file.read_text())
        theirs = api.Results.model_validate_json((tmp_path / f"updated_{file.name}").read_text())
        assert len(theirs.simulations) == 8
        rewards = [[simulation.reward_info.reward for simulation in each.simulations] for each in (ours, theirs)]
        assert rewards[0] == rewards[1]
        reported = evaluation["summary"]["pass_hat"]
        assert {int(k): e["value"] for k, e in reported.items()} == pytest.approx(compute_metrics(theirs).pass_hat_ks)


def test_validate_a_checkpoint_gives_the_score_of_the_run_that_made_it(telecom: Path, words: list[str], policy: Path):
    checkpoint = max((telecom / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    trial = ["experiment_name=e2e", "trial_name=score", "mode=validate", f"ckpt_path={checkpoint}"]
    assert train.main([*words, f"actor.path={policy}", *trial]) == 0
    report = json.loads((run_folder(words, "e2e", "score") / "report.json").read_text())
    assert set(report["evaluations"]) == {"score"}
    assert report["evaluations"]["score"]["weights_version"] == 2  # the checkpoint's, not the starting policy's


def test_resume_goes_on_where_the_run_was(telecom: Path, words: list[str], policy: Path):
    """One epoch, stopped, resumed for the second: steps, optimizer, schedule and task order continue."""
    first = min((telecom / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    resumed = run_folder(words, "e2e", "resumed")
    shutil.copytree(first, resumed / "checkpoints" / first.name)
    trial = ["experiment_name=e2e", "trial_name=resumed", "ckpt_path=last", "trainer.validate_before=false"]
    assert train.main([*words, f"actor.path={policy}", *trial, "trainer.save_top_k=-1"]) == 0
    newest = max((resumed / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    original = max((telecom / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    ours, theirs = read_meta(newest), read_meta(original)
    assert ours["global_step"] == theirs["global_step"] == 2
    assert ours["weights_version"] == theirs["weights_version"] == 2
    assert ours["Tau2DataModule"] == theirs["Tau2DataModule"]  # as many tasks drawn
    # The record of this folder lacks the checkpoint's own batch, whose numbers the checkpoint holds.
    steps = [row for row in metrics(resumed) if row.get("loss/mean")]
    assert [int(row["step"]) for row in steps] == [0, 1]


def test_a_checkpoint_of_another_model_is_refused_before_anything_heavy(
    telecom: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from tau2_lightning.policy.tiny import build_tiny_policy

    other = build_tiny_policy(tmp_path / "other", ["other words " * 50], size="m", vocab_size=400)
    checkpoint = next((telecom / "checkpoints").glob("*.ckpt"))
    assert train.main([*words, f"actor.path={other}", f"ckpt_path={checkpoint}"]) == 2
    assert "hidden_size" in capsys.readouterr().err


def test_two_steps_on_mock(words: list[str], policy: Path):
    trial = ["experiment_name=e2e", "trial_name=mock", "domain=mock", "trainer.validate_before=false"]
    assert train.main([*words, f"actor.path={policy}", *trial]) == 0
    run = run_folder(words, "e2e", "mock")
    assert len([row for row in metrics(run) if row.get("loss/mean")]) == 2


def test_a_domain_of_the_users_own_trains_and_validates_between_the_steps(words: list[str], policy: Path):
    """The caller of the main job registers the domain in tau2's registry and does nothing else."""
    from tau2.domains.mock.environment import get_environment, get_tasks
    from tau2.registry import registry

    def environment(solo_mode: bool = False):
        made = get_environment(solo_mode=solo_mode)
        made.domain_name = "own-e2e"
        return made

    registry.register_domain(environment, "own-e2e")
    registry.register_tasks(lambda task_split_name=None: get_tasks(None), "own-e2e")
    trial = ["experiment_name=e2e", "trial_name=own", "econfig.domain=own-e2e", "train_dataset.split=train"]
    between = ["trainer.validate_before=false", "trainer.validate_after=false", "trainer.validate_every_n_epochs=1"]
    assert train.main([*words, f"actor.path={policy}", *trial, *between]) == 0
    run = run_folder(words, "e2e", "own")
    assert len([row for row in metrics(run) if row.get("loss/mean")]) == 2
    # Each step's weights were validated before the next step began.
    scored = [row["step"] for row in metrics(run) if row.get("eval/own-e2e/test/pass^1")]
    assert len(scored) == 2
    assert len(list((run / "results").glob("*_own-e2e_test_version*.json"))) == 2


def test_two_steps_on_retail_with_the_scripted_user(words: list[str], policy: Path):
    trial = ["experiment_name=e2e", "trial_name=retail", "domain=retail", "econfig.user=scripted"]
    short = ["econfig.policy=none", "trainer.validate_before=false", "econfig.max_steps=12", "valid_dataset.limit=2"]
    assert train.main([*words, f"actor.path={policy}", *trial, *short]) == 0
    report = json.loads((run_folder(words, "e2e", "retail") / "report.json").read_text())
    assert report["evaluations"]["after"]["summary"]["user"] == "scripted"


def test_a_context_shorter_than_the_prompt_is_refused_before_anything_heavy(
    words: list[str], policy: Path, capsys: pytest.CaptureFixture[str]
):
    assert train.main([*words, f"actor.path={policy}", "gconfig.max_tokens=30", "gconfig.max_new_tokens=20"]) == 2
    assert "opening prompts take up to" in capsys.readouterr().err


def test_another_logger_and_a_transfer_penalty(words: list[str], policy: Path):
    trial = ["experiment_name=e2e", "trial_name=tensorboard", "logger=tensorboard", "trainer.max_epochs=1"]
    none = ["trainer.validate_before=false", "trainer.validate_after=false", "econfig.transfer_penalty=0.5"]
    assert train.main([*words, f"actor.path={policy}", *trial, *none]) == 0
    run = run_folder(words, "e2e", "tensorboard")
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert metrics(run)


@pytest.mark.slow
def test_retail_with_a_second_engine_as_the_user(words: list[str], policy: Path, reference: ReferenceModels):
    """The user is a second model with its own proxy; the run starts both."""
    trial = ["experiment_name=e2e", "trial_name=user-engine", "domain=retail", "econfig.policy=none"]
    user = [f"econfig.user_engine.path={reference.folders['B']}", "econfig.user_engine.max_tokens=4096"]
    short = ["econfig.max_steps=6", "econfig.user_engine.max_new_tokens=16", "trainer.validate_before=false"]
    small = ["valid_dataset.limit=2", "trainer.max_epochs=1", "econfig.user_engine.dtype=float32"]
    python = [f"rollout.engine_python={PYTHON}"] if PYTHON else []
    assert train.main([*words, f"actor.path={policy}", *trial, *user, *short, *small, *python]) == 0
    report = json.loads((run_folder(words, "e2e", "user-engine") / "report.json").read_text())
    assert report["evaluations"]["after"]["summary"]["user"] == "B"
