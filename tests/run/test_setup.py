"""Errors that can be found before heavy work are reported before it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.manifest import write_manifest
from tau2_lightning.launch.run_folder import META, RunFolder
from tau2_lightning.policy.loading import load_model_config
from tau2_lightning.policy.tiny import SIZES, build_tiny_policy
from tau2_lightning.run import policy as policy_run
from tau2_lightning.run import setup as setup_run
from tau2_lightning.run.checkpoints import check_size
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.rules import check_config
from tau2_lightning.strategy.checkpoint import fingerprint
from tau2_lightning.strategy.opening import load_causal_lm
from tau2_lightning.telemetry.phases import PhaseClock


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A checkpoint of the tiny policy "m" with only the part that is inspected."""
    folder = tmp_path / "step1.ckpt"
    folder.mkdir()
    torch.save({"model": {"model_type": "qwen3", "vocab_size": 2048, **SIZES["m"]}}, folder / META)
    return str(folder)


def test_a_checkpoint_of_another_tiny_policy_is_refused_before_any_warm_start(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun = lambda *_: pytest.fail("the warm start was begun")  # noqa: E731
    monkeypatch.setattr("tau2_lightning.warm_start.make.warm_start_policy", begun)
    config = load_config(["domain=mock", f"cache_dir={tmp_path}"], check=False)
    with pytest.raises(ConfigError, match=r"hidden_size 192.*the tiny policy \(s\) has .*hidden_size 128"):
        policy_run.prepare_policy(config, PhaseClock(), RunFolder(tmp_path), checkpoint)


def test_a_checkpoint_of_the_same_size_goes_on(checkpoint: str):
    check_size(checkpoint, "m")


@pytest.mark.parametrize("where", ["cache", "elsewhere", "damaged"])
def test_a_checkpoint_goes_with_the_policy_that_it_started_from(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Settings that would make another warm start do not matter; a folder that is not ours is never touched."""
    home = tmp_path / ("elsewhere" if where == "elsewhere" else "warm_start")
    kept = build_tiny_policy(home / "mock-s-1", ["check the line. " * 30], vocab_size=320)
    if where != "elsewhere":
        write_manifest(kept)
    stored = {"model": fingerprint(load_model_config(kept)), "policy_path": str(kept)}
    if where == "damaged":
        (kept / "config.json").write_text((kept / "config.json").read_text() + " ")
    (tmp_path / "step1.ckpt").mkdir()
    torch.save(stored, tmp_path / "step1.ckpt" / META)
    monkeypatch.setattr("tau2_lightning.warm_start.make.warm_start_policy", lambda *_: tmp_path / "made")
    monkeypatch.setattr(policy_run, "check_policy", lambda *_: None)
    config = load_config(["domain=mock", f"cache_dir={tmp_path}", "warm_start.seed=7"], check=False)
    policy = policy_run.prepare_policy(config, PhaseClock(), RunFolder(tmp_path), str(tmp_path / "step1.ckpt"))
    assert policy == (kept if where == "cache" else tmp_path / "made")
    assert kept.is_dir() == (where != "damaged"), "a damaged warm start is made again"


def test_a_context_too_short_for_the_prompts_is_said_before_fine_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tau2_lightning.warm_start.make.fine_tune", lambda *_: pytest.fail("the heavy work was begun"))
    words = ["domain=mock", f"cache_dir={tmp_path}", "warm_start.demonstrations=4", "trainer.progress=off"]
    short = ["gconfig.max_tokens=20", "gconfig.max_new_tokens=8"]
    config = check_config(load_config([*words, *short], check=False))
    with pytest.raises(ConfigError, match=r"gconfig\.max_tokens=20: opening prompts take up to \d+ tokens"):
        policy_run.prepare_policy(config, PhaseClock(), RunFolder(tmp_path), None)


def test_a_policy_of_the_hub_is_trained_from_its_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    downloaded = build_tiny_policy(tmp_path, ["check the line. " * 30], vocab_size=320, max_position_embeddings=40_960)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(downloaded))
    config = load_config(["domain=mock", "econfig.solo_mode=true", "actor.path=owner/name"], check=False)
    policy = policy_run.prepare_policy(config, PhaseClock(), RunFolder(tmp_path), None)
    assert policy == downloaded
    assert load_causal_lm(policy).config.model_type == "qwen3"


RECIPES = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("words", [[f"experiment={name}"] for name in RECIPES] + [["trainer.save_top_k=3"]])
def test_every_recipe_has_a_trainer(words: list[str], tmp_path: Path):
    config = load_config([*words, "logger=csv"], check=False)
    trainer = setup_run.build_trainer(config, RunFolder(tmp_path))
    checkpoint: Any = trainer.checkpoint_callback
    assert checkpoint.keep == config.trainer.save_top_k


def test_the_trainer_spreads_the_experts_of_a_hybrid(tmp_path: Path):
    config = load_config(["allocation_mode=vllm:d1+archon:(attn:d4|ffn:e4)", "logger=csv"], check=False)
    strategy: Any = setup_run.build_trainer(config, RunFolder(tmp_path)).strategy
    assert strategy.spec.e == 4


@pytest.mark.parametrize("key", ["collect_timeout", "engine_start_timeout", "weight_sync.timeout"])
def test_ranks_wait_longer_than_the_first_one_may_work_alone(key: str, tmp_path: Path):
    config = load_config([f"rollout.{key}=9000", "logger=csv"], check=False)
    strategy: Any = setup_run.build_trainer(config, RunFolder(tmp_path)).strategy
    # A weight sync, the longest of the last two, may take two publications, two comparisons (of 2 x 2,048 tokens at 8 a
    # second, at least as long as a publication) and two starts of an engine.
    longest = {
        "collect_timeout": 9000,
        "engine_start_timeout": 2 * 9000 + 2 * (300 + 512),
        "weight_sync.timeout": 4 * 9000 + 1200,
    }
    assert strategy._timeout == timedelta(seconds=longest[key] + 600)
