"""Settings that can start, and fail or become very slow later, give a warning with figures before the run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tau2_lightning import train
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.run import forecast
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.forecast import kv_bytes_per_token, warnings_of
from tests.run.policies import qwen3_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with the template of Qwen3, which drops earlier thoughts."""
    return qwen3_policy(tmp_path_factory, 40_960)


@pytest.fixture(autouse=True)
def opening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "longest_opening", lambda *_: 9_904)


def config(policy: Path | None, *words: str) -> RunConfig:
    path = [] if policy is None else [f"actor.path={policy}"]
    own = ["gconfig.max_tokens=32768", "gconfig.max_new_tokens=2048", "rollout.kv_cache_gib=100"]
    return load_config(
        ["domain=telecom", "econfig.solo_mode=true", "trainer.accelerator=cpu", *own, *path, *words], check=False
    )


def test_ordinary_settings_say_nothing(policy: Path) -> None:
    assert warnings_of(config(policy)) == []
    assert warnings_of(load_config([], check=False)) == []


def test_branches_of_a_thinking_solo_agent_are_counted(policy: Path) -> None:
    (told,) = warnings_of(config(policy, "rollout.history_policy=branch"))
    assert "13 rows with 156,052 tokens in total, instead of one row of 13,804" in told
    for calm in ("gconfig.enable_thinking=false", "rollout.reasoning_parser=null", "econfig.solo_mode=false"):
        assert warnings_of(config(policy, "rollout.history_policy=branch", calm)) == [], calm


def test_a_context_for_few_turns(policy: Path) -> None:
    (told,) = warnings_of(config(policy, "gconfig.max_new_tokens=8192"))
    assert "opening of 9904 tokens and 2.8 turns of 8192" in told


def test_a_cache_for_few_episodes(policy: Path) -> None:
    (told,) = warnings_of(config(policy, "rollout.kv_cache_gib=0.05", "rollout.max_concurrent_rollouts=128"))
    assert told.startswith("128 episodes in an engine need ") and "there are 0.1 GiB: about " in told


def test_a_turn_that_its_time_limit_cuts_off() -> None:
    (told,) = warnings_of(config(None, "rollout.request_timeout=60", "rollout.tokens_per_second=10"))
    assert "ends a turn after about 600 tokens at 10 tokens/s; gconfig.max_new_tokens=2048 takes 205 s" in told


def test_a_batch_that_one_episode_outlasts() -> None:
    words = ["rollout.collect_timeout=1000", "rollout.episode_timeout=600", "rollout.tokens_per_second=100"]
    (told,) = warnings_of(config(None, *words))
    assert "shorter than one episode with its retries (3 x 600 s)" in told


def test_bytes_of_a_token() -> None:
    qwen3_8b = SimpleNamespace(num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    assert kv_bytes_per_token(qwen3_8b, "bfloat16") == 147_456
    assert kv_bytes_per_token(qwen3_8b, "float32") == 294_912
    assert kv_bytes_per_token(SimpleNamespace(), "float32") is None


def test_the_plan_shows_them_with_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["mode=plan", "rollout.collect_timeout=1000", "rollout.episode_timeout=600", "trainer.limit_val_batches=0"]
    assert train.main(words) == 0
    told = capsys.readouterr().out
    assert "warning: rollout.collect_timeout=1000 is shorter" in told
    assert "time limits: completion" in told and "episode 600 s, batch 1000 s" in told
    assert "no validation" in told and "validate on" not in told
