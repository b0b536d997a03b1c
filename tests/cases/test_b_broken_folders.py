"""A folder that is no whole, sound model ends plan and start alike: exit code 2 and one line, in a second or so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tau2_lightning import train
from tau2_lightning.launch.run_folder import META
from tau2_lightning.policy.chat_templates import template_source
from tau2_lightning.policy.loading import check_policy_path
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.strategy.opening import load_causal_lm
from tau2_lightning.strategy.weight_check import weight_violations
from tests.cases.policies import planned

HERMES = template_source("hermes")
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


@tensors
def integers(held: dict[str, Tensor]) -> None:
    held["model.norm.weight"] = held["model.norm.weight"].to(torch.int8)


@tensors
def eight_bits(held: dict[str, Tensor]) -> None:
    held["model.norm.weight"] = held["model.norm.weight"].to(torch.float8_e4m3fn)


@tensors
def other_head(held: dict[str, Tensor]) -> None:
    held["lm_head.weight"] = held["model.embed_tokens.weight"] + 1


def dangling(name: str) -> Change:
    """As after a copy of a hub's cache without its blobs."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("../../blobs/0123")

    return change


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))


def second_file(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())


def weights_are_a_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def only(name: str) -> Change:
    """No weights but a file of this name."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / name)

    return change


def endless(folder: Path) -> None:
    """Nothing ends a turn: no eos anywhere, and a template of plain lines."""
    (folder / "generation_config.json").unlink()
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": None}))
    for mark in ("<|im_start|>", "<|im_end|>"):
        assert mark in HERMES
    (folder / "chat_template.jinja").write_text(HERMES.replace("<|im_start|>", "- ").replace("<|im_end|>", ""))


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
    "weights are integers": (integers, "model.norm.weight in model.safetensors is stored as I8, and only BF16"),
    "weights have eight bits": (eight_bits, "is stored as F8_E4M3, and only BF16, F16, F32, F64 are read"),
    "tied, with another head": (other_head, "lm_head.weight differs from model.embed_tokens.weight, and tie_word"),
    "weights are a dangling link": (dangling("model.safetensors"), "model.safetensors links to a file that is not"),
    "config is a dangling link": (dangling("config.json"), "config.json links to a file that is not there"),
    "tokenizer is a dangling link": (dangling("tokenizer.json"), "tokenizer.json links to a file .*cp -L"),
    "end of turn is a dangling link": (dangling("generation_config.json"), "generation_config.json links to a file"),
    "weights are a folder": (weights_are_a_folder, r"model.safetensors cannot be read \("),
    "an adapter beside the model": (adapter, r"holds an adapter \(adapter_config.json\) of owner/base.*actor.lora"),
    "two files without an index": (
        second_file,
        "consolidated.safetensors lies beside model.safetensors",
    ),
    "no weights but a GGUF file": (only("m.gguf"), "holds no weights.*actor.gguf=.*m.gguf and actor.path"),
    "no weights but settings": (only("training_args.bin"), "holds no weights"),
    "end of turn is beyond the vocabulary": (
        text("generation_config.json", '{"eos_token_id": [99999]}'),
        r"eos_token_id=\[99999\], and token ids are 0 to",
    ),
    "end of turn is negative": (text("generation_config.json", '{"eos_token_id": -1}'), "eos_token_id=-1, and token"),
    "nothing ends a turn": (endless, "no token ends a turn"),
    "a reward model": (
        config(architectures=["Qwen3ForSequenceClassification"]),
        r"calls it Qwen3ForSequenceClassification \(architectures\)",
    ),
    "compressed": (config(compression_config={"quant_method": "x"}), r"quantised \(x\)"),
    "windows of no size": (
        config(layer_types=["sliding_attention"] * 3),
        "layer_types name sliding_attention, and its sliding_window is not set",
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


def test_attention_that_the_config_names_is_ignored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever saved the model had the package flash-attn; here trainer and engine choose their own attention."""
    config(_attn_implementation="flash_attention_2")(folder)
    code, lines = planned(capsys, folder, "actor=tiny")
    assert code == 0, lines
    assert load_causal_lm(folder).config._attn_implementation != "flash_attention_2"


def test_a_head_that_is_a_copy_is_accepted(folder: Path) -> None:
    tensors(lambda held: held.update({"lm_head.weight": held["model.embed_tokens.weight"].clone()}))(folder)
    assert weight_violations(folder) == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("m.gguf", "is a GGUF file, not a folder. Set actor.gguf="),
        ("model.safetensors", "is a file, not a folder. Give the folder that holds it: "),
    ],
)
def test_a_file_in_place_of_a_folder_says_what_to_give(name: str, told: str, folder: Path) -> None:
    (folder / "m.gguf").write_bytes(b"GGUF")
    (found,) = check_policy_path(folder / name)
    assert told in str(found) and str(folder) in found.remedy


def test_a_checkpoint_in_place_of_a_model_says_how_it_becomes_one(tmp_path: Path) -> None:
    (tmp_path / META).touch()
    (found,) = check_policy_path(tmp_path)
    assert "holds no config.json" in found.problem and "tau2_lightning.export" in found.remedy


def test_a_home_directory_that_the_shell_left_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Hydra's grammar does not take a bare tilde, and its error used to blame `mode=plan`, which is in `~/models`."""
    assert train.main(["mode=plan", "actor.path=~/models"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: 1 problem") and "Write actor.path=$HOME/models" in shown, shown
