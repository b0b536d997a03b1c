"""B1: a chat template that shows no tools is refused before anything starts, with what it loses and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning import serve, sft, train
from tau2_lightning.errors import ConfigError
from tau2_lightning.policy.chat_templates import template_source
from tau2_lightning.run.compose import load_config
from tests.cases.templated import with_template, words_of
from tests.jobs import run_job, small_policy
from tests.rollout.chat import behaviours as b

LOST = "leaves out of the prompt: tools (name, description, arguments, descriptions of arguments)"
REMEDY = "Use actor.chat_template=hermes or actor.chat_template=qwen3, or the path of a Jinja template"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


@pytest.fixture(scope="module")
def hiding(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(tiny, b.NO_TOOLS, tmp_path_factory.mktemp("b01") / "policy")


def test_b01_the_plan_refuses_it_and_names_the_remedy(hiding: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(words_of(hiding, "mode=plan")) == 2
    told = capsys.readouterr().out
    assert f"would not start here: actor.chat_template=None: the tokenizer's own template ({hiding})" in told
    assert LOST in told and REMEDY in told


def test_b01_the_remedy_helps(
    hiding: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tau2_lightning.run.policy.check_prompts", lambda *_: None)  # no tiny context holds them
    assert train.main(words_of(hiding, "mode=plan", "actor.chat_template=hermes")) == 0
    told = capsys.readouterr().out
    assert "chat template: hermes; calls are read by hermes; it grows append-only" in told


def test_b01_every_command_refuses_it(
    hiding: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "serve", lambda *_: pytest.fail("it went on"))
    for command in (train, sft, serve):
        assert command.main(words_of(hiding)) == 2, command
        told = capsys.readouterr().err
        assert LOST in told and REMEDY in told, command


@pytest.mark.parametrize(
    ("source", "lost"),
    [
        (b.NO_ARGUMENTS, r"tools \(arguments, descriptions of arguments\)"),
        (b.NO_SYSTEM, r"the system text \(the chat template does not accept these messages: refused\)"),
        (b.NO_RESULTS, "results of calls"),
    ],
)
def test_b01_whatever_is_lost_is_named(tiny: Path, tmp_path: Path, source: str, lost: str) -> None:
    folder = with_template(tiny, source, tmp_path / "policy")
    with pytest.raises(ConfigError, match=rf"actor\.chat_template=None: .*leaves out of the prompt: {lost}"):
        load_config(words_of(folder))


def test_b01_a_template_of_ones_own_is_a_file(hiding: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(b.PLAIN)
    assert load_config(words_of(hiding, f"actor.chat_template={file}")).rollout.tool_call_parser == "hermes"
    with pytest.raises(ConfigError, match=r"no such template .* one of these names \(hermes, qwen3\)"):
        load_config(words_of(hiding, "actor.chat_template=hermse"))
    file.write_text("{% if %}")
    with pytest.raises(ConfigError, match=r"actor\.chat_template=.*mine\.jinja.* cannot be used"):
        load_config(words_of(hiding, f"actor.chat_template={file}"))


def test_b01_the_embedded_policy_reads_no_rules_and_stays_accepted(tiny: Path) -> None:
    assert load_config(words_of(tiny)).rollout.tool_call_parser == "hermes"
    with pytest.raises(ConfigError, match=r"actor\.chat_template='hermes': the tiny policy has a template of its own"):
        load_config(["actor.chat_template=hermes"])


def test_b01_the_exported_policy_carries_the_template(
    hiding: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["domain=mock", "train_dataset.batches_per_epoch=1", "trainer.max_epochs=1", "trainer.limit_val_batches=0"]
    run_job(hiding, tmp_path, monkeypatch, *own, "~callbacks.results", "actor.chat_template=hermes")
    (exported,) = (tmp_path / "e" / "t").rglob("policy/chat_template.jinja")
    assert exported.read_text().strip() == template_source("hermes")
