"""The store of weights that came over HTTP, and its routes: what they accept and refuse, what stays on disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
import xxhash
from safetensors.torch import load_file, save

from tau2_lightning.rollout.engine.in_vllm.auth import RequireKey
from tau2_lightning.rollout.engine.in_vllm.changes import pack
from tau2_lightning.rollout.engine.in_vllm.dense_files import DenseFiles
from tau2_lightning.rollout.engine.in_vllm.names import WEIGHTS as PATH
from tau2_lightning.rollout.engine.in_vllm.private_folders import PrivateFolders
from tau2_lightning.rollout.engine.in_vllm.weight_routes import TakeWeights
from tau2_lightning.rollout.engine.in_vllm.weight_store import CHUNK_BYTES, RefusedError, WeightStore
from tau2_lightning.rollout.weights.sent_copy import update

WEIGHTS = {"a.weight": torch.randn(40, 30).to(torch.bfloat16), "a.bias": torch.randn(7), "step": torch.tensor(3)}


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(PrivateFolders((tmp_path,)))


def send(store: WeightStore, files: list[bytes], base: str | None = None, *, piece: int = 1000) -> str:
    upload = store.begin([len(file) for file in files], base)
    for part, file in enumerate(files):
        for offset in range(0, len(file), piece):
            data = file[offset : offset + piece]
            store.write(upload, part, offset, data, xxhash.xxh3_128_hexdigest(data))
    return upload


def mapped(tmp_path: Path, weights: dict[str, torch.Tensor]) -> DenseFiles:
    """The trainer's own copy."""
    path = tmp_path / "trainer.safetensors"
    path.write_bytes(save(weights))
    dense = DenseFiles()
    dense.add(path)
    return dense


def changed(dense: DenseFiles, name: str, new: torch.Tensor) -> bytes:
    change = update(dense.bits(name), new)
    assert change is not None
    return pack({name: change})


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def test_full_weights_then_changes_give_the_trainers_weights(store: WeightStore, tmp_path: Path) -> None:
    dense = mapped(tmp_path, WEIGHTS)
    upload = send(store, [save({"a.weight": WEIGHTS["a.weight"]}), save({k: WEIGHTS[k] for k in ("a.bias", "step")})])
    paths = store.commit(upload, "1", dense.digests())
    assert store.version == "1" and len(paths) == 2
    new = WEIGHTS["a.weight"].clone()
    new[3, 4], new[39, 29] = float("nan"), -0.0
    data = changed(dense, "a.weight", new)
    assert store.commit(send(store, [data], "1"), "2", dense.digests()) == paths
    got = {**load_file(paths[0]), **load_file(paths[1])}
    assert torch.equal(got["a.weight"].view(torch.int16), new.view(torch.int16))
    assert same(got["a.bias"], WEIGHTS["a.bias"]) and same(got["step"], WEIGHTS["step"])
    store.drop()
    assert store.version is None and not any(Path(path).exists() for path in paths)


@pytest.mark.parametrize("where", ["values", "positions"])
def test_a_flipped_bit_in_a_delta_is_found_and_nothing_of_it_stays(
    store: WeightStore, tmp_path: Path, where: str
) -> None:
    dense = mapped(tmp_path, WEIGHTS)
    store.commit(send(store, [save(WEIGHTS)]), "1", dense.digests())
    new = WEIGHTS["a.weight"].clone()
    new[3, 4], new[5, 6] = 7.0, 8.0
    data = bytearray(changed(dense, "a.weight", new))
    # A file ends with its values: [2 positions + escapes][2 x 2 bytes].
    at = len(data) - 1 if where == "values" else len(data) - 5
    data[at] ^= 1
    with pytest.raises(RefusedError, match=r"1 of 3 tensors have another digest, first a\.weight") as refused:
        store.commit(send(store, [bytes(data)], "1"), "2", dense.digests())
    assert refused.value.status == 422
    assert store.version is None and not list(tmp_path.rglob("tau2-lightning-*/[0-9a-f]*"))
    data[at] ^= 1
    with pytest.raises(RefusedError, match="holds version None, not 1"):
        send(store, [bytes(data)], "1")


def test_control_without_the_flip_the_same_delta_is_taken(store: WeightStore, tmp_path: Path) -> None:
    dense = mapped(tmp_path, WEIGHTS)
    store.commit(send(store, [save(WEIGHTS)]), "1", dense.digests())
    new = WEIGHTS["a.weight"].clone()
    new[3, 4], new[5, 6] = 7.0, 8.0
    store.commit(send(store, [changed(dense, "a.weight", new)], "1"), "2", dense.digests())
    assert store.version == "2"


def test_a_bit_that_flipped_in_memory_is_found_by_the_next_delta(store: WeightStore, tmp_path: Path) -> None:
    dense = mapped(tmp_path, WEIGHTS)
    (path,) = store.commit(send(store, [save(WEIGHTS)]), "1", dense.digests())
    with Path(path).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    new = WEIGHTS["a.weight"] * 1
    new[0, 0] = 9.0
    with pytest.raises(RefusedError, match="digest"):
        store.commit(send(store, [changed(dense, "a.weight", new)], "1"), "2", dense.digests())


def test_pieces_that_are_altered_missing_or_out_of_place_are_refused(store: WeightStore, tmp_path: Path) -> None:
    file, digests = save(WEIGHTS), mapped(tmp_path, WEIGHTS).digests()
    upload = store.begin([len(file)], None)
    with pytest.raises(RefusedError, match="checksum"):
        store.write(upload, 0, 0, file[:-1], xxhash.xxh3_128_hexdigest(file))
    for part, offset in ((1, 0), (0, 1), (0, -1), (-1, 0)):
        with pytest.raises(RefusedError, match="no room"):
            store.write(upload, part, offset, file, xxhash.xxh3_128_hexdigest(file))
    store.write(upload, 0, 0, file[:10], xxhash.xxh3_128_hexdigest(file[:10]))
    with pytest.raises(RefusedError, match=rf"10 of {len(file)} bytes"):
        store.commit(upload, "1", digests)
    store.write(upload, 0, 10, file[10:], xxhash.xxh3_128_hexdigest(file[10:]))
    store.write(upload, 0, 10, file[10:], xxhash.xxh3_128_hexdigest(file[10:]))  # a piece that is sent twice
    store.commit(upload, "1", digests)


def test_another_upload_ends_the_one_before(store: WeightStore) -> None:
    first = store.begin([10], None)
    store.begin([10], None)
    with pytest.raises(RefusedError, match="another one has begun"):
        store.write(first, 0, 0, b"", xxhash.xxh3_128_hexdigest(b""))


def test_more_than_the_memory_is_refused_before_it_is_sent(store: WeightStore) -> None:
    with pytest.raises(RefusedError, match="no room") as refused:
        store.begin([1 << 60], None)
    assert refused.value.status == 507


def test_files_that_are_none_of_weights_are_refused(store: WeightStore) -> None:
    for file in (b"x" * 100, save(WEIGHTS)[:-1]):
        with pytest.raises(RefusedError, match="not the weights"):
            store.commit(send(store, [file]), "1", {})


# --------------------------------------------------------------------------------------------------------- routes

Call = Callable[..., Awaitable[tuple[int, dict[str, Any]]]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Requests to the routes, after the check of the key, as in vLLM's server."""
    monkeypatch.setenv("VLLM_API_KEY", "secret")

    async def vllm(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    routes = TakeWeights(vllm)
    routes.store = WeightStore(PrivateFolders((tmp_path,)))
    app = RequireKey(routes)

    async def request(
        method: str, path: str, body: bytes = b"", query: str = "", *, key: str = "secret", length: int | None = None,
        leaves: bool = False,
    ) -> tuple[int, dict[str, Any]]:  # fmt: skip
        messages: list[Any] = [{"type": "http.request", "body": body, "more_body": leaves}]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        announced = len(body) if length is None else length
        headers = [(b"authorization", f"Bearer {key}".encode()), (b"content-length", str(announced).encode())]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": query.encode()}
        await app(scope, receive, send)
        return sent[0]["status"], orjson.loads(sent[1]["body"])

    return request


async def test_the_routes_take_weights(call: Call, tmp_path: Path) -> None:
    file, digests = save(WEIGHTS), mapped(tmp_path, WEIGHTS).digests()
    status, held = await call("GET", PATH)
    assert status == 200 and held["version"] is None and held["store"]
    _, begun = await call("POST", f"{PATH}/begin", orjson.dumps({"sizes": [len(file)], "base": None}))
    query = f"upload={begun['upload']}&part=0&offset=0&checksum={xxhash.xxh3_128_hexdigest(file)}"
    assert await call("POST", f"{PATH}/chunk", file, query) == (200, {})
    body = orjson.dumps({"upload": begun["upload"], "version": "4", "digests": digests})
    status, committed = await call("POST", f"{PATH}/commit", body)
    assert status == 200 and load_file(committed["paths"][0]).keys() == WEIGHTS.keys()
    assert (await call("GET", PATH))[1] == {"store": held["store"], "version": "4"}
    assert await call("POST", f"{PATH}/drop") == (200, {})
    assert (await call("GET", PATH))[1]["version"] is None


async def test_nothing_is_taken_without_the_key(call: Call) -> None:
    for method, route in (("GET", ""), ("POST", "/begin"), ("POST", "/chunk"), ("POST", "/commit"), ("POST", "/drop")):
        assert (await call(method, PATH + route, b"{}", key="wrong"))[0] == 401


async def test_bodies_that_are_cut_short_too_long_or_nonsense_are_refused(call: Call) -> None:
    assert (await call("POST", f"{PATH}/chunk", b"abc", length=4))[0] == 400
    assert (await call("POST", f"{PATH}/chunk", b"abc", leaves=True))[0] == 400
    assert (await call("POST", f"{PATH}/chunk", b"", length=CHUNK_BYTES + 1))[0] == 413
    assert (await call("POST", f"{PATH}/chunk", b"0" * (CHUNK_BYTES + 1), length=1))[0] == 413
    assert (await call("POST", f"{PATH}/chunk", b"abc", "upload=x"))[0] == 400
    assert (await call("POST", f"{PATH}/chunk", b"abc", "upload=x&part=0&offset=0&checksum=0"))[0] == 409
    for body in (b"", b"no json", b"[]", b"null", b"{}", b'{"sizes": ["x"], "base": null}', b'{"sizes": 3}'):
        assert (await call("POST", f"{PATH}/begin", body))[0] == 400
    assert (await call("POST", f"{PATH}/nothing"))[0] == 404


async def test_other_paths_pass_to_vllm(call: Call) -> None:
    assert (await call("POST", "/pause"))[0] == 299
