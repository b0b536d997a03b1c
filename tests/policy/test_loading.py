"""What is not a policy is refused with one clear error before weights are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tau2_lightning.errors import ConfigError
from tau2_lightning.policy.loading import check_policy_path, load_model, load_tokenizer, parse_dtype, save_policy
from tau2_lightning.policy.tiny import build_tiny_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(tmp_path_factory.mktemp("tiny"), ["some text"], vocab_size=320)


def test_a_good_folder_has_no_violation(folder: Path) -> None:
    assert check_policy_path(folder) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"actor\.path=.*nowhere.*no such folder"):
        load_model(tmp_path / "nowhere")


def test_a_folder_without_config_or_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    assert "config.json" in str(check_policy_path(tmp_path)[0])
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert "weights" in str(check_policy_path(tmp_path)[0])


def test_a_tokenizer_without_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = tmp_path / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(settings.read_text()).items() if key != "chat_template"}
    settings.write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match="no chat template"):
        load_tokenizer(tmp_path)


def test_dtypes(folder: Path) -> None:
    assert parse_dtype("torch.bfloat16") is torch.bfloat16
    assert next(load_model(folder, "bfloat16").parameters()).dtype is torch.bfloat16
    with pytest.raises(ConfigError, match=r"actor\.dtype"):
        load_model(folder, "float8")


def test_saved_policy_is_the_same_policy(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    copy = save_policy(tmp_path / "copy", model, tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load_model(copy).parameters(), strict=True))
    assert load_tokenizer(copy).chat_template == tokenizer.chat_template
