"""A folder that is no whole, sound model ends plan and start alike: exit code 2 and one line, in a second or so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from tau2_lightning import train
from tau2_lightning.policy.loading import check_policy_path
from tau2_lightning.policy.tiny import build_tiny_policy
from tests.cases.policies import planned

Change = Callable[[Path], None]


def config(**changes: object) -> Change:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def text(name: str, content: str | bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lost_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def tensors(change: Callable[[dict[str, Tensor]], None]) -> Change:
    def changed(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})

    return changed


@tensors
def lost_tensor(held: dict[str, Tensor]) -> None:
    del held["model.norm.weight"]


@tensors
def narrow_tensor(held: dict[str, Tensor]) -> None:
    held["model.norm.weight"] = held["model.norm.weight"][:-1].contiguous()


def lost_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


BROKEN: dict[str, tuple[Change, str]] = {
    "config is no JSON": (text("config.json", '{"model_type": '), "config.json cannot be read"),
    "config is a list": (text("config.json", "[1]"), "config.json cannot be read"),
    "config is binary": (text("config.json", b"\xff\xfe\x00"), "config.json cannot be read"),
    "unknown type": (config(model_type="qwen9"), "config.json cannot be read .*qwen9"),
    "no hidden size": (config(hidden_size="wide"), "config.json"),
    "negative layers": (config(num_hidden_layers=-2), "config.json"),
    "no heads": (config(num_attention_heads=0), "config.json"),
    "positions are a word": (config(max_position_embeddings="many"), "config.json"),
    "unknown activation": (config(hidden_act="nonsense"), "transformers cannot build .*nonsense"),
    "text model is empty": (config(text_config="x"), "config.json cannot be read"),
    "masked words": (config(model_type="bert"), "predicts masked words"),
    "small embedding": (config(vocab_size=100), "token ids up to .* the model's embedding has 100"),
    "tokenizer is no JSON": (text("tokenizer.json", "{"), "its tokenizer does not load"),
    "tokenizer's settings are no JSON": (text("tokenizer_config.json", "{"), "its tokenizer"),
    "generation settings are a list": (text("generation_config.json", "[]"), "generation_config.json"),
    "end of turn is a word": (text("generation_config.json", '{"eos_token_id": "x"}'), "eos_token_id='x'"),
    "generation settings are no JSON": (text("generation_config.json", "{"), "generation_config.json"),
    "weights are cut off": (cut, r"model.safetensors is cut off, or no safetensors file \(.*not fully covered\)"),
    "weights are empty": (
        text("model.safetensors", ""),
        r"model.safetensors is cut off, or no safetensors file \(.*too small\)",
    ),
    "a shard is missing": (lost_shard, "model-00001-of-00002.safetensors of .* is missing"),
    "the index is missing": (lost_index, "neither model.safetensors nor model.safetensors.index.json"),
    "a tensor is missing": (lost_tensor, r"no file holds model.norm.weight \(\[\d+\]\)"),
    "a tensor has another shape": (narrow_tensor, r"model.norm.weight in model.safetensors has the shape \[\d+\]"),
    "wider than the weights": (config(intermediate_size=1000), r"mlp.*has the shape .*config.* makes it .*1000"),
    "more layers than kinds of layers": (config(num_hidden_layers=9), r"config.json cannot be read .*layer_types"),
    "more layers than weights": (
        config(num_hidden_layers=9, layer_types=["full_attention"] * 9),
        "no file holds model.layers.*; and .* more",
    ),
    "fewer layers than weights": (
        config(num_hidden_layers=1, layer_types=["full_attention"]),
        "holds model.layers.1.*which the model does not have",
    ),
    "template divides by zero": (text("chat_template.jinja", "{{ 1 // 0 }}"), "chat_template"),
    "template calls itself": (
        text("chat_template.jinja", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
        "template",
    ),
    "template is binary": (text("chat_template.jinja", b"\xff\xfe\x00"), ""),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_tiny_policy(tmp_path / "policy", ["Phones, plans and bills. " * 20], vocab_size=320)


@pytest.mark.parametrize("name", BROKEN)
def test_the_plan_refuses_it_in_one_line(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, told = BROKEN[name]
    change(folder)
    code, lines = planned(capsys, folder)
    assert code == 2 and len(lines) == 1, lines
    assert re.search(told, lines[0]), lines
    assert lines[0].startswith(("would not start here: actor.", "would not start here: rollout."))


@pytest.mark.parametrize(
    "name", ["config is no JSON", "unknown activation", "weights are cut off", "a tensor has another shape"]
)
def test_the_start_refuses_it_in_the_same_words(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, told = BROKEN[name]
    change(folder)
    words = ["gconfig.max_tokens=200", "gconfig.max_new_tokens=20", f"output_dir={tmp_path}"]
    assert train.main([f"actor.path={folder}", *words]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: 1 problem") and re.search(told, shown), shown
    assert not (tmp_path / "tau2-grpo").exists(), "nothing was begun"


def test_the_sound_folder_is_accepted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_policy_path(folder) == []
    code, lines = planned(capsys, folder, "actor=tiny")
    assert code == 0, lines
