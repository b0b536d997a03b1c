"""Changes of tensors are packed and unpacked bit for bit; altered or incomplete files are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tau2_lightning.rollout.engine.in_vllm.changes import Change, pack, sparse, unpack
from tau2_lightning.rollout.weights.sent_copy import update

# Quiet and signalling NaN with payloads, +-0.0, +-inf, the smallest and the largest denormal, one.
SPECIAL = [0x7FC0, 0x7FC1, 0xFFC5, 0x7F81, 0xFFBF, 0x0000, 0x8000, 0x7F80, 0xFF80, 0x0001, 0x8001, 0x007F, 0x3F80]
WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@st.composite
def two_versions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """The bits of a tensor before and after: special values among random ones, any share of them changed."""
    word = WORDS[draw(st.sampled_from([2, 2, 2, 1, 4, 8]))]
    size = draw(st.integers(1, 3000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    old = rng.integers(0, np.iinfo(word).max, size, dtype=word, endpoint=True)
    places = rng.random(size) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    old[places] = rng.choice(SPECIAL, int(places.sum())).astype(word)
    new = old.copy()
    changed = rng.random(size) < draw(st.sampled_from([0.0, 0.0005, 0.01, 0.1, 1.0]))
    how_many = int(changed.sum())
    step = rng.choice(np.array([1, np.iinfo(word).max], word), how_many)  # one unit up or down
    special = rng.choice(SPECIAL, how_many).astype(word)
    new[changed] = np.where(rng.random(how_many) < 0.7, new[changed] + step, special)
    return old, new


def tensor_of(bits: np.ndarray) -> torch.Tensor:
    """The bits as a tensor of a dtype of that size: floating-point where there is one."""
    dtype = {1: torch.int8, 2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[bits.itemsize]
    return torch.from_numpy(bits.view(f"i{bits.itemsize}").copy()).view(dtype)


@given(two_versions())
def test_what_arrives_is_the_new_tensor_bit_for_bit(versions: tuple[np.ndarray, np.ndarray]) -> None:
    old, new = versions
    kept = old.copy()
    change = update(kept, tensor_of(new))
    assert np.array_equal(kept, new), "the trainer's copy"
    if change is None:
        assert np.array_equal(old, new)
        return
    engine = old.copy()
    ((name, arrived),) = unpack(pack({"layer.weight": change}))
    arrived.apply(engine)
    assert name == "layer.weight" and np.array_equal(engine, new)


def test_one_value_in_a_hundred_takes_a_fiftieth_of_the_bytes() -> None:
    rng = np.random.default_rng(0)
    old = (rng.normal(0, 0.02, 1_000_000).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    new = old.copy()
    at = rng.random(len(new)) < 0.01
    new[at] += rng.choice(np.array([1, 0xFFFF], np.uint16), int(at.sum()))
    change = update(old.copy(), tensor_of(new))
    assert change is not None and change.positions is not None
    assert len(pack({"w": change})) < 0.02 * new.nbytes


def test_where_most_values_change_all_of_them_are_sent() -> None:
    old = np.arange(1000, dtype=np.uint16)
    change = update(old.copy(), tensor_of(old + np.uint16(1)))
    assert change is not None and change.positions is None
    assert len(pack({"w": change})) < old.nbytes + 200


def a_file() -> bytes:
    old = np.arange(500, dtype=np.uint16)
    at = np.array([0, 3, 256, 499])
    change = sparse(at, old[at] + np.uint16(5), old[at], 500)
    assert change is not None
    return pack({"w": change})


def test_a_file_cut_short_anywhere_is_refused() -> None:
    data = a_file()
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"."):
            list(unpack(data[:length]))
    assert len(list(unpack(data))) == 1, "control: the whole file is read"


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 12, "count": 1, "values": [0, 2, 0]},
        {"bits": 16, "count": 1, "values": [0, 99, 0]},
        {"bits": 16, "count": 1, "values": [-2, 0, 0]},
        {"bits": 16, "count": 2, "values": [0, 2, 0]},
        {"bits": 16, "count": 1},
        {"bits": 16, "count": 1, "values": [0, 2, 50]},
        {"bits": 16, "count": 1, "positions": [0, 1, 0], "values": [0, 2, 0]},  # 255 alone ends no number
        [],
    ],
)
def test_a_header_that_lies_is_refused(fields: object) -> None:
    head = json.dumps({"w": fields}).encode()
    with pytest.raises(ValueError, match=r"."):
        list(unpack(len(head).to_bytes(8, "little") + head + b"\xff\x00"))


def test_changes_of_another_tensor_are_refused() -> None:
    change = Change(np.array([2, 7]), np.array([1, 1], np.uint16))
    with pytest.raises(ValueError, match="position 7"):
        change.apply(np.zeros(7, np.uint16))
    with pytest.raises(ValueError, match="uint16"):
        change.apply(np.zeros(10, np.uint32))
    with pytest.raises(ValueError, match="1 values"):
        Change(None, np.zeros(1, np.uint16)).apply(np.zeros(2, np.uint16))
