"""Settings of the generation that contradict each other are refused, with both keys."""

from __future__ import annotations

from tau2_lightning.run.compose import load_config
from tau2_lightning.run.generation_rules import check_generation


def found(*words: str) -> list[str]:
    config = load_config(["rollout.tool_call_parser=hermes", *words], check=False)
    return [str(violation) for violation in check_generation(config) if "contradicts" in str(violation)]


def test_thinking_that_is_on_in_one_place_and_off_in_the_other() -> None:
    off = "gconfig.chat_template_kwargs={enable_thinking: false}"
    assert found(off, "gconfig.enable_thinking=true") == [
        "gconfig.chat_template_kwargs.enable_thinking=False: contradicts gconfig.enable_thinking=true. "
        "Set one of the two"
    ]
    assert not found(off) and not found(off, "gconfig.enable_thinking=false")
