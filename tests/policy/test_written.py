"""A policy's folder appears complete or not at all; its files are of the size that was asked for."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tau2_lightning.policy.written import PolicyFiles, appearing, write_shards
from tau2_lightning.strategy.saving import remove_leftovers
from tests.strategy.tiny import tiny_model


def test_files_are_cut_at_their_size_and_indexed(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.full((100,), float(number)) for number in range(5)}
    write_shards(tmp_path, iter(tensors.items()), 900)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [*(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)), "model.safetensors.index.json"]
    index = json.loads((tmp_path / names[-1]).read_text())
    assert index["metadata"]["total_size"] == 2000 and list(index["weight_map"]) == list(tensors)
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])


def test_one_file_has_no_index_and_no_tensor_is_too_large(tmp_path: Path) -> None:
    write_shards(tmp_path, iter([("a", torch.zeros(1000))]), 10)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_at_most_one_file_is_held(tmp_path: Path) -> None:
    alive: list[int] = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for number in range(6):
            alive.append(len(list(tmp_path.glob("*.safetensors"))))
            yield f"t{number}", torch.zeros(100)

    write_shards(tmp_path, tensors(), 800)
    assert alive == [0, 0, 0, 1, 1, 2], "a file is written as soon as it is full"


def test_sharded_it_loads_in_transformers(tmp_path: Path) -> None:
    model = tiny_model()
    PolicyFiles(model.state_dict().items(), model.config).write(tmp_path / "p", shard_bytes=60_000)
    assert len(list((tmp_path / "p").glob("*.safetensors"))) > 2
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "p", dtype=torch.float32).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_an_error_leaves_the_older_folder_and_nothing_else(tmp_path: Path) -> None:
    with appearing(tmp_path / "p") as folder:
        (folder / "old").write_text("1")

    def broken() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.zeros(3)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        PolicyFiles(broken(), tiny_model().config).write(tmp_path / "p")
    assert [path.name for path in tmp_path.rglob("*")] == ["p", "old"]
    with appearing(tmp_path / "p") as folder:
        (folder / "new").write_text("2")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "p"]


def stand_still(folder: str) -> None:
    with appearing(Path(folder)) as partial:
        (partial / "half").write_text("1")
        time.sleep(60)


def test_killed_in_the_middle_there_is_no_torn_folder(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=stand_still, args=(str(tmp_path / "p"),))
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "p.partial" / "half").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, 9)
    process.join(30)
    assert [path.name for path in tmp_path.iterdir()] == ["p.partial"]
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_others_may_read_the_weights_as_they_read_the_other_files(tmp_path: Path) -> None:
    with appearing(tmp_path / "policy") as partial:
        write_shards(partial, iter([("a", torch.zeros(3))]), 1000)
        (partial / "config.json").write_text("{}")
    modes = {path.stat().st_mode for path in (tmp_path / "policy").iterdir()}
    assert len(modes) == 1
