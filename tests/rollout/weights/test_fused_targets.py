"""Changes under Hugging Face's names reach parameters that an engine fuses and shards, bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tau2_lightning.rollout.engine.in_vllm.private_folders import PrivateFolders
from tau2_lightning.rollout.engine.in_vllm.weight_store import WeightStore
from tau2_lightning.rollout.weights.files import WeightFiles
from tau2_lightning.rollout.weights.sent_copy import SentCopy

Weights = dict[str, torch.Tensor]
SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-40, -1e-40, 1.0]).to(torch.bfloat16)
FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
ROWS = {"q": 8, "k": 4, "v": 4, "gate": 6, "up": 6}


def loaded(weights: Weights, rank: int, size: int) -> Weights:
    """What worker ``rank`` of ``size`` has in its parameters: each part's own rows, one part below the other."""
    rows = {name: tensor.chunk(size)[rank] for name, tensor in weights.items()}
    return {fused: torch.cat([rows[part] for part in parts]) for fused, parts in FUSED.items()}


def random_weights(generator: torch.Generator, columns: int) -> Weights:
    made = {name: torch.randn(rows, columns, generator=generator).to(torch.bfloat16) for name, rows in ROWS.items()}
    for tensor in made.values():
        special = torch.rand(tensor.shape, generator=generator) < 0.1
        drawn = SPECIAL[torch.randint(0, len(SPECIAL), tensor.shape, generator=generator)]
        tensor[special] = drawn[special]
    return made


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 40]), st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0]), max_size=4))
def test_after_any_changes_every_worker_has_the_trainers_bits(seed: int, columns: int, shares: list[float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = random_weights(generator, columns)
    with tempfile.TemporaryDirectory() as folder:
        store = WeightStore(PrivateFolders((Path(folder),)))
        copy = SentCopy(WeightFiles(Path(folder), Path(folder)))
        paths: list[str] = []
        for version, share in enumerate([0.0, *shares]):
            other = random_weights(generator, columns)
            for name, tensor in weights.items():
                at = torch.rand(tensor.shape, generator=generator) < share
                tensor[at] = other[name][at]
            copy.begin(in_place=True)
            for number, names in enumerate((("q", "gate"), ("k", "v", "up"))):  # fused parts in different files
                copy.take(f"v{version}-{number}", {name: weights[name] for name in names})
            copy.end()
            whole = copy.changes is None
            assert whole == (version == 0)
            files = list(copy.paths if copy.changes is None else copy.changes)
            upload = store.begin([file.stat().st_size for file in files], None if whole else str(version - 1))
            for part, file in enumerate(files):
                data = file.read_bytes()
                store.write(upload, part, 0, data, xxhash.xxh3_128_hexdigest(data))
            paths = store.commit(upload, str(version), copy.digests)
        held = {name: tensor for path in paths for name, tensor in load_file(path).items()}
        for rank in (0, 1):
            expected = loaded(weights, rank, 2)
            for name, tensor in loaded(held, rank, 2).items():
                assert torch.equal(tensor.view(torch.int16), expected[name].view(torch.int16))
        store.drop()
