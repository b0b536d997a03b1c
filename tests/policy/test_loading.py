"""A folder that is not a policy is refused with one clear error before weights are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from tau2_lightning.errors import ConfigError
from tau2_lightning.policy.loading import (
    check_policy_path,
    load_model_config,
    load_tokenizer,
    resolve_policy,
)
from tau2_lightning.policy.tiny import build_tiny_policy

FILES = [
    *("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model"),
    *("chat_template.jinja", "merges.txt"),
    *("README.md", "consolidated.safetensors", "original/params.json", "pytorch_model.bin", "onnx/model.onnx"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(tmp_path_factory.mktemp("tiny"), ["some text"], vocab_size=320)


def test_a_good_folder_has_no_violation(folder: Path) -> None:
    assert check_policy_path(folder) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"actor\.path=.*nowhere.*no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"actor\.path=.*nowhere.*no such folder"):
        load_model_config(tmp_path / "nowhere")


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


def test_a_folder_is_itself_and_a_hub_id_its_download(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str], etag_timeout: float) -> str:
        asked.append(
            (name, [*filter_repo_objects(FILES, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)])
        )
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_policy(folder) == folder and resolve_policy(tmp_path / "nowhere") == tmp_path / "nowhere"
    assert not asked
    assert resolve_policy("owner/name") == folder
    ((name, files),) = asked
    assert name == "owner/name" and files == FILES[:6]


def test_what_the_hub_does_not_give_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"actor\.path='owner/no-such-policy': is no folder here.*HF_HUB_OFFLINE"):
        resolve_policy("owner/no-such-policy")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(ConfigError, match=r"some\.key=.*holds no config\.json"):
        resolve_policy("owner/name", "some.key")
