"""Part B, remote code: a folder that needs Python code of its own is refused by name, and its code never runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.policy.loading import check_policy_path, load_model_config, load_tokenizer
from tests.cases.policies import planned, policy_described

CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Config: ...\nclass Tokenizer: ...\n"
MAP = {"auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}


def with_code(folder: Path, model: dict[str, Any], tokenizer: dict[str, Any]) -> Path:
    policy_described(folder, model)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **tokenizer}))
    (folder / "own.py").write_text(CODE)
    return folder


def test_a_model_of_its_own_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_code(tmp_path, {**MAP, "model_type": "my_model"}, {})
    code, why = planned(capsys, folder)
    (told,) = [line for line in why if "actor.path" in line]
    assert code == 2 and "its model 'my_model' needs code of its own (auto_map in config.json)" in told
    assert "code of a model is never run" in told and not (folder / "ran").exists()


def test_a_tokenizer_of_its_own_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}
    folder = with_code(tmp_path, {}, own)
    code, why = planned(capsys, folder)
    (told,) = [line for line in why if "actor.path" in line]
    assert code == 2 and "its tokenizer 'MyTokenizer' needs code of its own" in told
    assert not (folder / "ran").exists()
    assert [each.key for each in check_policy_path(folder, "econfig.user_engine.path")] == ["econfig.user_engine.path"]


def test_code_beside_a_model_that_transformers_knows_is_left_alone(tmp_path: Path) -> None:
    """As Phi-3 on the hub: it names code from before transformers had its classes, and needs none."""
    own = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}
    folder = with_code(tmp_path, MAP, own)
    assert check_policy_path(folder) == []
    assert load_model_config(folder).model_type == "qwen3" and load_tokenizer(folder).chat_template
    assert not (folder / "ran").exists()
