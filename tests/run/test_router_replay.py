"""`rollout.return_routed_experts`: on if the trainer can replay the model's experts, else refused when asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tau2_lightning.errors import ConfigError
from tau2_lightning.policy.tiny import build_tiny_policy, train_tokenizer
from tau2_lightning.rollout.engines import engine_settings
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.router_replay import replay_lines, with_router_replay

TEXTS = ["check the line status. " * 30]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(tmp_path_factory.mktemp("dense"), TEXTS, vocab_size=512)


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("moe")
    tokenizer = train_tokenizer(TEXTS, 512)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=len(tokenizer), **sizes, **experts)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settled(policy: Path, *words: str) -> bool | None:
    config = with_router_replay(load_config([f"actor.path={policy}", "actor=tiny", *words], check=False), policy)
    asked = ProxySettings.of(config).return_routed_experts
    assert asked == engine_settings(config, policy, policy / "log").routed_experts
    assert all(view.rollout == config.rollout for view in config.by_domain.values())
    return config.rollout.return_routed_experts


def test_it_is_on_for_a_model_with_experts_and_off_for_others(moe: Path, dense: Path) -> None:
    assert settled(moe) is True
    assert settled(moe, "rollout.return_routed_experts=true") is True
    assert settled(moe, "rollout.return_routed_experts=false") is False
    assert settled(dense) is False
    assert settled(dense, "rollout.return_routed_experts=false") is False


def test_nothing_is_recorded_without_training(moe: Path) -> None:
    assert settled(moe, "mode=validate") is False


def test_a_model_without_experts_is_refused_where_they_are_asked_for(dense: Path) -> None:
    with pytest.raises(ConfigError, match="no experts whose choice the trainer can replay") as error:
        settled(dense, "rollout.return_routed_experts=true")
    assert error.value.violations[0].key == "rollout.return_routed_experts"


def test_an_engine_without_a_prefix_cache_keeps_no_experts(moe: Path) -> None:
    without = 'rollout.engine_args=["--no-enable-prefix-caching"]'
    assert settled(moe, without) is False
    with pytest.raises(ConfigError, match="keeps experts in its prefix cache"):
        settled(moe, without, "rollout.return_routed_experts=true")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "router replay: on, .*where the engine returns none"),
        (["rollout.return_routed_experts=false"], r"router replay: off \(rollout.return_routed_experts=false\)"),
        (['rollout.engine_args=["--no-enable-prefix-caching"]'], r"router replay: off \(--no-enable-prefix-caching"),
    ],
)
def test_the_screen_says_what_it_does(moe: Path, words: list[str], told: str) -> None:
    (line,) = replay_lines(load_config([f"actor.path={moe}", "actor=tiny", *words], check=False), moe)
    assert re.search(told, line), line


def test_of_other_runs_the_screen_says_nothing(moe: Path, dense: Path) -> None:
    assert replay_lines(load_config([f"actor.path={dense}", "actor=tiny"], check=False), dense) == []
    assert replay_lines(load_config([f"actor.path={moe}", "actor=tiny", "mode=validate"], check=False), moe) == []
