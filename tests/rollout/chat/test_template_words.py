"""The arguments of a chat template: the template must use them, and requests can set others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.rollout.chat.template_words import template_kwargs, template_variables, unknown_words
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.generation_rules import check_generation, check_template_words
from tests.rollout.proxy.fixtures import byte_tokenizer, template


def config(*words: str) -> RunConfig:
    return load_config(["domain=mock", *words], check=False)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe", "qwen3_training", "nemotron_3_nano"])
def test_templates_that_know_the_word(name: str) -> None:
    assert "enable_thinking" in template_variables(template(name))


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "qwen3_instruct_2507", "phi3", "tiny"])
def test_templates_that_do_not(name: str) -> None:
    (found,) = unknown_words({"enable_thinking": False}, template(name), name)
    assert f"the template of {name} does not use enable_thinking" in str(found)


def test_a_word_that_every_renderer_sets_is_none_of_the_users() -> None:
    assert [one.key for one in unknown_words({"messages": [], "tools": []}, template("qwen3"), "m")] == [
        "gconfig.chat_template_kwargs.messages", "gconfig.chat_template_kwargs.tools",
    ]  # fmt: skip
    assert not list(unknown_words({"reasoning_effort": "low"}, template("gptoss"), "m"))
    assert not list(unknown_words({}, template("qwen2_5"), "m"))


def test_arguments_come_from_two_keys() -> None:
    both = config("gconfig.enable_thinking=false", "gconfig.chat_template_kwargs={a: 1}").gconfig
    assert template_kwargs(both) == {"a": 1, "enable_thinking": False}
    assert template_kwargs(config().gconfig) == {}


def test_the_tiny_policy_does_not_think() -> None:
    (found,) = check_generation(config("gconfig.enable_thinking=true"))
    assert found.key == "gconfig.enable_thinking" and "the template of the tiny policy does not use" in str(found)
    assert not check_generation(config())


def test_a_folder_is_asked_before_the_run_and_again_where_the_policy_is_made(tmp_path: Path) -> None:
    from tau2_lightning.errors import ConfigError
    from tau2_lightning.policy.tiny import build_tiny_policy

    policy = build_tiny_policy(tmp_path, ["check the line. " * 30], vocab_size=320)
    given = config(
        f"actor.path={policy}", "gconfig.chat_template_kwargs={mood: calm}", "rollout.reasoning_parser=think"
    )
    (found,) = check_generation(given)
    assert found.key == "gconfig.chat_template_kwargs.mood" and str(policy) in str(found)
    with pytest.raises(ConfigError, match="does not use mood"):
        check_template_words(given, policy)
    byte_tokenizer(template("qwen3")).save_pretrained(policy)
    assert not check_generation(config(f"actor.path={policy}", "gconfig.enable_thinking=false"))
