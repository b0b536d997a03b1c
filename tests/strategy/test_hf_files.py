"""Loading a folder shard by shard: the same parameters, few bytes read, no rank with the whole model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.strategy import opening
from tau2_lightning.strategy.hf_files import ModelFiles
from tau2_lightning.strategy.lora import LoRASettings
from tests.strategy.accounting import CountedFiles, LiveBytes
from tests.strategy.distributed import fork
from tests.strategy.tiny import clipped_loss, connected, full, full_gradients, share, tiny_batches, tiny_model


def load(text: str, folder: str, tied: bool, family: str, replicate: int = 1) -> dict[str, Any]:
    kept: list[CountedFiles] = []
    original = ModelFiles

    def remembering(folder: Path) -> CountedFiles:
        kept.append(CountedFiles(folder))
        return kept[0]

    patched: Any = opening
    patched.ModelFiles = remembering
    compute, live = connected(text, replicate=replicate), LiveBytes()
    try:
        with live:
            model = compute.parallelize(folder)
    finally:
        patched.ModelFiles = original
    whole = connected(text, replicate=replicate)
    whole.mesh = compute.mesh
    other = dict(whole.parallelize(tiny_model(tied=tied, family=family, layers=8)).named_parameters())
    pairs = [(name, parameter, other[name]) for name, parameter in model.named_parameters()]
    different = [
        name
        for name, ours, theirs in pairs
        if not torch.equal(full(ours), full(theirs))
        or getattr(ours, "placements", None) != getattr(theirs, "placements", None)
    ]
    held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() * 4 for p in model.parameters())
    files = kept[0]
    return {
        "names": list(other) == [name for name, _ in model.named_parameters()], "different": different,
        "read": files.bytes_read, "largest": files.largest_read, "peak": live.peak, "held": held,
        "unit": max(sum(p.numel() * 4 for p in unit.parameters()) for unit in (*fsdp_units(tied, family),)),
    }  # fmt: skip


def fsdp_units(tied: bool, family: str) -> list[Any]:
    """The units that are materialised one at a time: a decoder layer, or embedding and head."""
    model = tiny_model(tied=tied, family=family, layers=8)
    rest = torch.nn.ModuleList([model.model.embed_tokens, model.model.norm, model.lm_head])
    return [model.model.layers[0], rest]


@pytest.fixture(scope="module")
def saved(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool, str]:
    """A folder of several files: a dense model with tied embeddings, or a mixture of experts without."""
    family, tied = request.param, request.param == "qwen3"
    folder = tmp_path_factory.mktemp(family)
    tiny_model(tied=tied, family=family, layers=8).save_pretrained(folder, max_shard_size="60KB")
    return folder, tied, family


FAST = [("qwen3", "t2"), ("qwen3_moe", "d2e2"), ("qwen3_moe", "t2")]
SLOW = [("qwen3", text) for text in ("d2", "d2t2", "p2", "d2p2")] + [
    ("qwen3_moe", text) for text in ("d2", "p2", "d2p2", "d2t2e2", "p2t2e2")
]


@pytest.mark.parametrize(
    ("saved", "text"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)], indirect=["saved"]
)
def test_each_rank_reads_and_holds_its_part_only(saved: tuple[Path, bool, str], text: str) -> None:
    folder, tied, family = saved
    ranks = fork(ParallelSpec.parse(text).world, load, text, str(folder), tied, family)
    total = sum(p.numel() * 4 for p in tiny_model(tied=tied, family=family, layers=8).parameters())
    for rank in ranks:
        assert rank["names"] and rank["different"] == []
        assert rank["read"] == rank["held"]  # it reads only its own part
        # at most its own part, one unit before and again during its sharding, and one slice that is being read
        assert rank["peak"] <= rank["held"] + 2 * rank["unit"] + rank["largest"]
        assert rank["peak"] < total
    assert sum(rank["read"] for rank in ranks) >= total


def trains(text: str, folder: str) -> dict[str, Any]:
    """A step of adapters on a base model that was read shard by shard."""
    compute = connected(text, lora=LoRASettings(4, 8.0))
    model = compute.parallelize(folder).train()
    batches = share(tiny_batches(), compute)
    first = compute.forward_backward(batches, clipped_loss).loss
    gradients = full_gradients(compute)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    after = compute.forward_backward(batches, clipped_loss, train=False).loss
    return {"losses": (float(first), float(after)), "gradients": gradients, "base": compute.base_norm()}


@pytest.mark.parametrize("text", ["d2p2", pytest.param("d2t2", marks=pytest.mark.slow)])
def test_what_was_read_in_parts_trains_as_what_was_read_whole(text: str, tmp_path: Path) -> None:
    tiny_model(tied=True).save_pretrained(tmp_path)
    one = fork(1, trains, "d1", str(tmp_path))[0]
    for rank in fork(4, trains, text, str(tmp_path)):
        assert rank["losses"] == pytest.approx(one["losses"], abs=1e-6) and one["losses"][0] != one["losses"][1]
        assert rank["base"] == pytest.approx(one["base"], rel=1e-6)
        for name, gradient in rank["gradients"].items():
            assert float((gradient - one["gradients"][name]).abs().max()) <= 1e-6, name


def test_copies_read_their_shard_too(tmp_path: Path) -> None:
    tiny_model(tied=True, layers=8).save_pretrained(tmp_path)
    for rank in fork(4, load, "d4", str(tmp_path), True, "qwen3", 2):
        assert rank["names"] and rank["different"] == [] and rank["read"] == rank["held"]


def whole(text: str, folder: str) -> bool:
    compute = connected(text)
    model = compute.parallelize(folder)
    want = tiny_model().state_dict()
    return all(torch.equal(full(p), want[name]) for name, p in model.named_parameters())


def test_folders_of_another_kind_are_loaded_by_transformers(tmp_path: Path) -> None:
    """The tensor names are not the model's own: transformers can map them, the sharded reading cannot."""
    tiny_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors.pop("lm_head.weight")
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file({**renamed, "lm_head.weight": head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert all(fork(2, whole, "d2", str(tmp_path)))


def test_a_slice_is_read_and_counted(tmp_path: Path) -> None:
    save_file({"x": torch.arange(12.0).reshape(3, 4)}, tmp_path / "model.safetensors")
    files = CountedFiles(tmp_path)
    assert "x" in files and "y" not in files
    assert files.read("x", (slice(1, 2), slice(0, 2))).tolist() == [[4.0, 5.0]]
    assert files.bytes_read == files.largest_read == 8
    files.close()
