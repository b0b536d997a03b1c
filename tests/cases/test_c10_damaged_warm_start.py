"""C10: a warm start in the cache that is damaged is made again, and this is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tau2_lightning.launch.manifest import MANIFEST, damage
from tau2_lightning.policy.loading import load_model_config, load_tokenizer
from tau2_lightning.run.compose import load_config
from tau2_lightning.strategy.opening import load_causal_lm
from tau2_lightning.warm_start import make, work
from tau2_lightning.warm_start.work import FACTS

DIALOGUE = {
    "messages": [
        {"role": "user", "content": "Please tend the lamp."},
        {"role": "assistant", "content": "It is tended."},
    ]
}


def truncated(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return spoil


def emptied(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(b"")

    return spoil


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def flipped(folder: Path) -> None:
    """One bit of a weight: sizes, headers and dates stay as they were."""
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 64
    file.write_bytes(bytes(content))


def everything(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


KINDS = {
    "weights-cut": truncated("model.safetensors"),
    "weights-emptied": emptied("model.safetensors"),
    "weights-removed": removed("model.safetensors"),
    "weights-flipped": flipped,
    "config-cut": truncated("config.json"),
    "tokenizer-cut": truncated("tokenizer.json"),
    "facts-emptied": emptied(FACTS),
    "facts-removed": removed(FACTS),
    "manifest-removed": removed(MANIFEST),
    "manifest-cut": truncated(MANIFEST),
    "everything": everything,
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = tmp_path_factory.mktemp("data") / "lamp.jsonl"
    data.write_text("\n".join([json.dumps(DIALOGUE)] * 3))
    return [f"warm_start.data={data}", "warm_start.steps=0", "trainer.progress=off"]


@pytest.fixture(scope="module")
def made(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    make.warm_start_policy(load_config([*words, f"cache_dir={cache}"], check=False))
    return cache


def start(cache: Path, words: list[str]) -> Path:
    def accept(policy: Path) -> None:
        load_tokenizer(policy)

    return make.warm_start_policy(load_config([*words, f"cache_dir={cache}"], check=False), accept=accept)


@pytest.mark.parametrize("kind", KINDS)
def test_c10_it_is_made_again_and_this_is_said(
    kind: str, made: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(made, cache)
    (folder,) = (cache / "warm_start").iterdir()
    KINDS[kind](folder)
    assert start(cache, words) == folder
    told = capsys.readouterr().err
    assert f"the warm start in {folder} is damaged (" in told and "made again" in told
    assert damage(folder) is None and load_model_config(folder) and load_causal_lm(folder)
    assert list((cache / "warm_start").iterdir()) == [folder], "what was damaged does not stay"


def test_c10_a_whole_one_is_taken_as_it_is(
    made: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Negative control."""

    def refuse(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(make, "_make", refuse)
    start(made, words)
    assert "damaged" not in capsys.readouterr().err


def test_c10_another_rank_waits_until_rank_0_has_made_it_again(
    made: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(made, cache)
    (folder,) = (cache / "warm_start").iterdir()
    whole = (folder / "config.json").read_bytes()
    truncated("config.json")(folder)
    for module in (make, work):
        monkeypatch.setattr(module, "global_rank", lambda: 1)
    slept: list[float] = []

    def rank_0_makes_it(seconds: float) -> None:
        slept.append(seconds)
        (folder / "config.json").write_bytes(whole)

    monkeypatch.setattr("time.sleep", rank_0_makes_it)
    assert start(cache, words) == folder and slept
