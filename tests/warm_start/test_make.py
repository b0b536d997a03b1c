"""The warm start learns its dialogues, is cached by what it depends on, and refuses what it cannot use."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tau2_lightning import sft
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.policy.loading import load_tokenizer
from tau2_lightning.run.compose import load_config
from tau2_lightning.strategy.opening import load_causal_lm
from tau2_lightning.warm_start import make
from tau2_lightning.warm_start.dialogues import training_dialogues
from tau2_lightning.warm_start.module import trapezoid


def dialogue(colour: str, tool: str) -> dict[str, Any]:
    """A lamp shows a colour; each colour requires one tool."""

    def call(name: str) -> dict[str, Any]:
        function = {"name": name, "arguments": "{}"}
        return {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": function}]}

    return {
        "messages": [
            {"role": "user", "content": "Please tend the lamp."},
            call("look_at_lamp"),
            {"role": "tool", "tool_call_id": "c", "content": f"The lamp is {colour}."},
            call(tool),
        ]
    }


RULES = {"red": "stop_machine", "green": "start_machine", "white": "fetch_water"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "lamp.jsonl"
    file.write_text("\n".join(json.dumps(dialogue(*rule)) for rule in RULES.items() for _ in range(12)))
    return file


def config(cache: Path, data: Path, *words: str) -> RunConfig:
    keys = {"steps": 60, "tokens_per_step": 400, "precision": "fp32", "data": data, "decay_from": 0.5}
    overrides = [f"warm_start.{key}={value}" for key, value in keys.items()]
    return load_config([*overrides, f"cache_dir={cache}", "trainer.progress=off", *words], check=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def policy(cache: Path, data: Path) -> Path:
    return make.warm_start_policy(config(cache, data))


def test_the_policy_does_what_the_dialogues_do(policy: Path) -> None:
    model, tokenizer = load_causal_lm(policy), load_tokenizer(policy)
    for colour, tool in RULES.items():
        messages = dialogue(colour, tool)["messages"]
        prompt = tokenizer.apply_chat_template(messages[:3], add_generation_prompt=True, return_tensors="pt")
        ids = prompt["input_ids"]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
        call = '<tool_call>\n{"name": "%s", "arguments": {}}\n</tool_call><|im_end|>' % tool  # noqa: UP031
        assert tokenizer.decode(out[0, ids.shape[1] :]) == call


def test_an_untrained_policy_does_not(cache: Path, data: Path) -> None:
    untrained = make.warm_start_policy(config(cache, data, "warm_start.steps=0"))
    model, tokenizer = load_causal_lm(untrained), load_tokenizer(untrained)
    ids = tokenizer.apply_chat_template(dialogue("red", "")["messages"][:1], return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert "look_at_lamp" not in tokenizer.decode(out[0, ids.shape[1] :])


def test_the_cache_is_used_again_and_keyed_by_every_setting(
    policy: Path, cache: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(make, "_make", refuse)
    seen: list[Path] = []
    assert make.warm_start_policy(config(cache, data), accept=seen.append) == policy
    assert seen == [policy]
    irrelevant = ["econfig.transfer_penalty=0.5", "econfig.turn_discount=0.9"]
    assert make.warm_start_policy(config(cache, data, *irrelevant)) == policy
    for word in ("warm_start.seed=1", "warm_start.learning_rate=0.001", "actor.size=m", "econfig.max_steps=7"):
        with pytest.raises(AssertionError, match="made again"):
            make.warm_start_policy(config(cache, data, word))
    with data.open("a") as file:
        file.write("\n" + json.dumps(dialogue("blue", "call_home")))
    with pytest.raises(AssertionError, match="made again"):
        make.warm_start_policy(config(cache, data))
    leftovers = [path.name for path in (cache / "warm_start").iterdir() if path.name.startswith(".")]
    assert not leftovers, "an interrupted warm start leaves nothing behind"


def test_facts_are_kept_beside_the_policy(policy: Path) -> None:
    facts = json.loads((policy / "warm_start.json").read_text())
    assert facts["dialogues"] == 36 and facts["sft/loss"] < 0.2 and facts["sft/sure"] > 0.9
    assert facts["settings"]["steps"] == 60


def test_what_cannot_be_used_is_refused(cache: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"warm_start\.data=.*no such file"):
        make.warm_start_policy(config(cache, tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match=r"max_tokens.*drops every dialogue"):
        make.warm_start_policy(config(cache, data, "warm_start.max_tokens=4"))
    with pytest.raises(ConfigError) as refused:
        config(cache, data, "warm_start.skip=2.0", "+warm_start.stepz=5")
    assert {violation.key for violation in refused.value.violations} == {"warm_start.skip", "warm_start.stepz"}


def test_a_policy_that_would_be_refused_is_not_fine_tuned(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "fine_tune", lambda *_: pytest.fail("the heavy work was begun"))

    def accept(policy: Path) -> None:
        assert load_tokenizer(policy).chat_template, "the checked folder is not a whole policy"
        raise ConfigError([Violation("gconfig.max_tokens", 1, "is too short", "Use more")])

    with pytest.raises(ConfigError, match="is too short"):
        make.warm_start_policy(config(tmp_path, data), accept=accept)
    assert not list((tmp_path / "warm_start").iterdir())


def test_a_policy_of_the_hub_is_fine_tuned_from_its_download(
    policy: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "check_policy_path", lambda *_, **__: [])
    found = [policy]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(found[0]))
    bases: list[Path] = []

    def fine_tune(_config: RunConfig, base: Path, _rows: Any, output: Path, *_: Any) -> dict[str, Any]:
        bases.append(base)
        shutil.copytree(base, output)
        return {"steps": 0}

    monkeypatch.setattr(make, "fine_tune", fine_tune)
    make.warm_start_policy(config(tmp_path, data, "actor.path=owner/name"))
    assert bases == [policy]
    make.warm_start_policy(config(tmp_path, data, "actor.path=owner/name"))
    assert bases == [policy]
    found[0] = Path(shutil.copytree(policy, tmp_path / "another_revision"))
    make.warm_start_policy(config(tmp_path, data, "actor.path=owner/name"))
    assert bases == [policy, found[0]]


SCRIPTED = "econfig.user=scripted"


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["domain=mock"], 1.0),
        (["domain=retail", SCRIPTED], 1.0),
        (["domain=airline", SCRIPTED], 1.0),
        (["domain=telecom", SCRIPTED], 1.0),
        (["domain=telecom"], None),
    ],
    ids=["mock", "retail", "airline", "telecom-dual", "telecom-solo"],
)
def test_every_domain_is_demonstrated_and_only_what_tau2_gives_one_is_imitated(
    words: list[str], kept: float | None
) -> None:
    """Solo telecom of the embedded policy is the exception: it keeps failures, so that GRPO has something to learn."""
    config = load_config([*words, "warm_start.demonstrations=8", "warm_start.skip=0.4"])
    settings = config.warm_start
    assert settings.require_reward == kept
    dialogues, facts = training_dialogues(config, Console(quiet=True))
    assert facts["demonstrations"] == len(dialogues) == 8 and facts["officially_scored"] >= 1
    assert (facts["mean_reward"] == 1.0) == (kept == 1.0)
    assert all(dialogue.tools and dialogue.messages[-1]["role"] in ("assistant", "user") for dialogue in dialogues)


def test_a_mixture_is_demonstrated_by_weight_from_its_first_dialogues_on() -> None:
    words = ["domain=[telecom,retail,airline]", SCRIPTED, "domains.telecom.econfig.solo_mode=true"]
    config = load_config([*words, "domains.retail.weight=2", "warm_start.demonstrations=12", "warm_start.skip=0.4"])
    dialogues, facts = training_dialogues(config, Console(quiet=True))
    assert facts["domains"] == {"telecom": 3, "retail": 6, "airline": 3} and len(dialogues) == 12
    tools = [{tool["function"]["name"] for tool in dialogue.tools} for dialogue in dialogues[:4]]
    assert sum("toggle_roaming" in names for names in tools) == 1, "the tokenizer learns from the first dialogues"
    assert sum("cancel_pending_order" in names for names in tools) == 2
    assert sum("book_reservation" in names for names in tools) == 1


def test_learning_rate_rises_stays_and_falls() -> None:
    factors = [trapezoid(step, 100, 10, 0.3) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9:31] == [1.0] * 22
    assert factors[65] == pytest.approx(0.5) and factors[99] == pytest.approx(0.02)
    assert all(earlier >= later for earlier, later in itertools.pairwise(factors[30:]))


def test_the_command_prints_errors_and_returns_two(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sft.main(["warm_start.stepz=5"]) == 2
    assert "warm_start.st" in capsys.readouterr().err


def test_the_command_runs_where_it_is_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    monkeypatch.setattr(make, "warm_start_policy", lambda *_: pytest.fail("it ran here"))
    assert sft.main(["domain=mock", "scheduler.type=slurm"]) == 2
    assert "scheduler.type" in capsys.readouterr().err
