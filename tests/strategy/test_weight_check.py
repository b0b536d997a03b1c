"""Folders whose tensors are not those of their config.json: what is told of each, and what is accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tau2_lightning.policy.weight_files import INDEX, SINGLE, incomplete_files, stored_tensors
from tau2_lightning.strategy.weight_check import weight_violations
from tests.strategy.families.models import CONFIGS, build

Tensors = dict[str, Tensor]
QUERIES = "model.layers.1.self_attn.q_proj.weight"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


def saved(folder: Path, name: str, change: Callable[[Tensors], None], shard: str = "5GB") -> Path:
    """The folder of the tiny model ``name``, with its tensors changed."""
    build(name).save_pretrained(folder, max_shard_size=shard)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


def told(folder: Path) -> str:
    found = weight_violations(folder)
    assert len(found) == 1, found
    assert found[0].key == "actor.path" and "config.json that belongs to these weights" in found[0].remedy
    return found[0].problem


@pytest.mark.parametrize("shard", ["5GB", "40KB"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_is_accepted_as_transformers_saves_it(name: str, shard: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 if shard == "5GB" else (tmp_path / INDEX).is_file()
    assert weight_violations(tmp_path) == [] == list(incomplete_files(tmp_path))


def test_another_shape_is_told_with_the_file_and_both_shapes(tmp_path: Path) -> None:
    def narrow(tensors: Tensors) -> None:
        if QUERIES in tensors:
            tensors[QUERIES] = tensors[QUERIES][:-8].contiguous()

    problem = told(saved(tmp_path, "Qwen3", narrow, "40KB"))
    file = json.loads((tmp_path / INDEX).read_text())["weight_map"][QUERIES]
    assert f"{QUERIES} in {file} has the shape [24, 32], and the configuration makes it [32, 32]" in problem


def test_many_differences_are_counted(tmp_path: Path) -> None:
    folder = saved(tmp_path, "Qwen3", lambda tensors: None)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "intermediate_size": 48}))
    problem = told(folder)
    assert problem.count("has the shape") == 3 and problem.endswith("; and 3 more"), problem


def test_a_missing_tensor_is_told(tmp_path: Path) -> None:
    def lose(tensors: Tensors) -> None:
        del tensors[QUERIES]

    assert f"no file holds {QUERIES} ([32, 32])" in told(saved(tmp_path, "Qwen3", lose))


def test_a_layer_too_many_is_told(tmp_path: Path) -> None:
    def more(tensors: Tensors) -> None:
        tensors["model.layers.2.self_attn.q_proj.weight"] = torch.zeros(32, 32)

    problem = told(saved(tmp_path, "Qwen3", more))
    assert f"{SINGLE} holds model.layers.2.self_attn.q_proj.weight, which the model does not have" in problem


@pytest.mark.parametrize("kind", ["lost", "narrow"])
def test_one_expert_of_many_is_told_by_its_own_name(kind: str, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        if kind == "lost":
            del tensors[EXPERT]
        else:
            tensors[EXPERT] = tensors[EXPERT][:, :-1].contiguous()

    problem = told(saved(tmp_path, "Qwen3-MoE", change))
    shapes = rf"no file holds {EXPERT} \(\[16, 32\]\)" if kind == "lost" else rf"{EXPERT} in {SINGLE} .*\[16, 31\]"
    assert re.search(shapes, problem), problem


def test_a_tied_head_need_not_be_stored_and_may_be(tmp_path: Path) -> None:
    tied = CONFIGS["Qwen2.5"](8)
    tied.tie_word_embeddings = True
    import transformers

    transformers.AutoModelForCausalLM.from_config(tied).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    assert "lm_head.weight" not in tensors and weight_violations(tmp_path) == []
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    assert weight_violations(tmp_path) == []


def test_other_spellings_that_transformers_knows_are_accepted(tmp_path: Path) -> None:
    """Without the prefix of the causal LM, and with buffers that older versions stored."""

    def older(tensors: Tensors) -> None:
        for name in [one for one in tensors if one.startswith("model.")]:
            tensors[name.removeprefix("model.")] = tensors.pop(name)
        tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    folder = saved(tmp_path, "Llama 3, SmolLM2", older)
    assert weight_violations(folder) == []
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "intermediate_size": 48}))
    assert "and the configuration makes it" in told(folder)


def test_what_transformers_joins_otherwise_is_accepted(tmp_path: Path) -> None:
    """A family of which nothing is known here: Mixtral stores one tensor for each expert."""
    import transformers

    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert weight_violations(tmp_path) == []
    tensors = load_file(tmp_path / SINGLE)
    lost = next(name for name in tensors if "experts.1." in name)
    del tensors[lost]
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    assert "its weights are not those of its config.json" in told(tmp_path)


def test_files_that_were_mended_are_looked_at_again(tmp_path: Path) -> None:
    whole = {}

    def lose(tensors: Tensors) -> None:
        whole.update(tensors)
        del tensors[QUERIES]

    folder = saved(tmp_path, "Qwen3", lose)
    assert weight_violations(folder)
    save_file({**load_file(folder / SINGLE), QUERIES: whole[QUERIES]}, folder / SINGLE, metadata={"format": "pt"})
    assert weight_violations(folder) == []


def test_files_that_do_not_agree_with_their_index(tmp_path: Path) -> None:
    build("Qwen3").save_pretrained(tmp_path, max_shard_size="40KB")
    index = tmp_path / INDEX
    content = json.loads(index.read_text())
    places = content["weight_map"]
    first, other = min(places.values()), max(places.values())
    moved = next(name for name, file in places.items() if file == first)
    index.write_text(json.dumps({**content, "weight_map": {**places, moved: other}}))
    assert list(incomplete_files(tmp_path)) == [f"{INDEX} says that {moved} is in {other}, which does not hold it"]
    index.unlink()
    (line,) = incomplete_files(tmp_path)
    assert line == f"there is neither {SINGLE} nor {INDEX}, only {first} and others"


def test_shapes_are_read_from_all_files(tmp_path: Path) -> None:
    model = build("Qwen3")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    found = stored_tensors(tmp_path)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }
    assert {tensor.file for tensor in found.values()} == {file.name for file in tmp_path.glob("*.safetensors")}
