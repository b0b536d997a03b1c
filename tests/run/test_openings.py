"""Opening prompts that do not fit are refused by the plan as by the start, and are measured once in a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning import train
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.engines import chat_format_of
from tau2_lightning.run import openings
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.forecast import warnings_of
from tau2_lightning.run.policy import check_prompts
from tests.run.policies import qwen3_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3_policy(tmp_path_factory, 2048)


def test_plan_and_start_refuse_them_in_the_same_words(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tau2_lightning.datamodule.Tau2DataModule", lambda *_, **__: pytest.fail("it went on"))
    words = ["domain=mock", "econfig.user=scripted", f"actor.path={policy}", "actor=tiny", f"output_dir={tmp_path}"]
    assert train.main(["mode=plan", *words]) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("would not start here")]
    assert "opening prompts take up to" in line
    assert "This model has 2048 positions: choose a domain with less text, econfig.policy=none, or a model" in line
    assert train.main(words) == 2
    assert line.removeprefix("would not start here: ") in capsys.readouterr().err


def test_they_are_measured_once(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "_measured", {})
    made: list[Path] = []

    def counted(config: RunConfig, policy: Path) -> ChatFormat:
        made.append(policy)
        return chat_format_of(config, policy)

    monkeypatch.setattr(openings, "chat_format_of", counted)
    words = ["domain=mock", "econfig.user=scripted", f"actor.path={policy}", "actor=tiny", "gconfig.max_tokens=100000"]
    words.append("rollout.tool_call_parser=hermes")
    config = load_config(words, check=False)
    check_prompts(config, policy)
    warnings_of(config, policy)
    assert len(made) == 1
    changed = load_config([*words, "econfig.policy=none"], check=False)
    assert openings.longest_opening(changed, policy) < openings.longest_opening(config, policy)
    assert len(made) == 2
    longer = "{{ 'and more ' * 100 }}" + (policy / "chat_template.jinja").read_text()
    before = openings.longest_opening(config, policy)
    (policy / "chat_template.jinja").write_text(longer)
    assert openings.longest_opening(config, policy) > before, "another template is measured again"
