"""Three domains in one run with real parts: tau2, vLLM, GRPO, validation of each domain, and a bit-exact resume."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tau2_lightning import train
from tau2_lightning.evaluation.report import main as compare
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.strategy.checkpoint import read_meta
from tests.e2e.reference_models import ReferenceModels

pytestmark = pytest.mark.e2e

DOMAINS = ("telecom", "retail", "airline")


@pytest.fixture(scope="module")
def words(engine_pool: EnginePool, reference: ReferenceModels, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("mixture")
    return [
        f"rollout.engine_urls=[{engine_pool.members[0].client.url}]",
        f"rollout.engine_api_key={engine_pool.settings.api_key}",
        f"actor.path={reference.folders['A']}", "actor.dtype=float32", "actor.precision=fp32",
        "actor.activation_checkpointing=none", "actor.optimizer.lr=1e-3", "actor.optimizer.warmup_steps=0",
        f"output_dir={folder}", "experiment_name=e", "logger=csv", "trainer.accelerator=cpu", "trainer.progress=off",
        "domain=[telecom,retail,airline]", "domains.retail.weight=2", "domains.telecom.econfig.solo_mode=true",
        "domains.telecom.econfig.policy=ticket", "domains.telecom.valid_dataset.limit=3",
        "econfig.user=scripted", "econfig.policy=none", "econfig.max_steps=10", "gconfig.max_tokens=4000",
        "gconfig.max_new_tokens=24", "gconfig.n_samples=2", "train_dataset.batch_size=4",
        "train_dataset.batches_per_epoch=1", "valid_dataset.limit=2", "valid_dataset.num_trials=1",
        "rollout.official_check=0.5", "rollout.filter_groups=false", "rollout.collect_timeout=200",
        # Rewards have no baseline, because a policy that solves nothing gives no other signal.
        "algorithm.reward_bias=-0.5", "algorithm.mean_level=none", "algorithm.std_level=none",
        "actor.ppo_n_minibatches=2", "trainer.max_epochs=3", "trainer.save_top_k=-1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(words: list[str]) -> Path:
    """The folder of a finished run of three steps."""
    assert train.main([*words, "trial_name=whole"]) == 0
    output = next(word for word in words if word.startswith("output_dir=")).partition("=")[2]
    return Path(output) / "e" / "whole"


def steps(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics" / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get("loss/mean")]


def test_every_domain_is_trained_on_by_its_weight_and_validated(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())["evaluations"]
    assert set(report) == {f"{name}/{domain}" for name in ("before", "after") for domain in DOMAINS}
    assert [report[f"after/{domain}"]["summary"]["episodes"] for domain in DOMAINS] == [3, 2, 2]
    stamps = {domain: report[f"after/{domain}"]["stamp"] for domain in DOMAINS}
    assert [stamps[domain]["user"] for domain in DOMAINS] == ["none", "scripted", "scripted"]
    assert all(report[f"before/{domain}"]["stamp"] == stamps[domain] for domain in DOMAINS)
    for row in steps(run):
        assert [float(row[f"rollout/{domain}/groups"]) for domain in DOMAINS] == [1, 2, 1]
    results = sorted(path.name for path in (run / "results").glob("*version*.json"))
    assert len([name for name in results if "not_replayable" not in name]) == 6
    assert results[0].startswith("01_airline") and results[-1].startswith("02_telecom")
    for path in (run / "results").glob("*_version0.json"):
        content = json.loads(path.read_text())
        domain = content["info"]["environment_info"]["domain_name"]
        assert content["stamp"] == stamps[domain]
    meta = read_meta(run / "checkpoints" / "step6.ckpt")["Tau2DataModule"]
    assert list(meta["stamp"]["domains"]) == list(DOMAINS) and meta["sampler"]["drawn"] == 12
    assert [meta["stamp"]["domains"][domain]["weight"] for domain in DOMAINS] == [1.0, 2.0, 1.0]


def test_a_resumed_mixture_ends_with_the_same_weights_to_the_bit(run: Path, words: list[str]) -> None:
    resumed = run.parent / "resumed"
    shutil.copytree(run / "checkpoints" / "step2.ckpt", resumed / "checkpoints" / "step2.ckpt")
    assert train.main([*words, "trial_name=resumed", "ckpt_path=last", "trainer.validate_before=false"]) == 0
    ours, theirs = (load_file(folder / "policy" / "model.safetensors") for folder in (resumed, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    first = load_file(
        Path(next(w for w in words if w.startswith("actor.path=")).partition("=")[2]) / "model.safetensors"
    )
    assert not all(torch.equal(first[name], theirs[name]) for name in theirs if name in first), "nothing was learned"
    whole = {row["step"]: row for row in steps(run)}
    assert [row["step"] for row in steps(resumed)] == list(whole)  # the checkpoint holds the numbers of its own batch
    for mine in steps(resumed):
        original = whole[mine["step"]]
        same = [name for name in original if name.startswith(("loss/", "rollout/", "reward/", "num_tokens"))]
        assert len(same) > 10 and all(mine[name] == original[name] for name in same)
    evaluations = [json.loads((folder / "report.json").read_text())["evaluations"] for folder in (resumed, run)]
    for domain in DOMAINS:
        ours, theirs = (one[f"after/{domain}"] for one in evaluations)
        assert ours["trials"] == theirs["trials"] and ours["stamp"] == theirs["stamp"]
    assert compare([str(run), str(resumed)]) == 0


def test_another_mixture_is_refused_at_a_resume(
    run: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    changed = [word for word in words if word != "domains.retail.weight=2"]
    assert train.main([*changed, "domains.retail.weight=3", "trial_name=whole", "ckpt_path=last"]) == 2
    assert "retail.weight: 2.0 -> 3.0" in capsys.readouterr().err
