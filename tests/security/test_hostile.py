"""Twenty thousand hostile requests: over the proxy's API, its sessions, online mode, and the node agents.

Each gets an answer below 500 or a closed connection, shows nothing of others, runs nothing, and leaves the service
as it was for those who hold a key.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tau2_lightning.launch import remote_commands
from tau2_lightning.launch.remote_commands import CommandServer, signature
from tau2_lightning.rollout.collect.collector import CollectPlan
from tau2_lightning.rollout.collect.online import OnlineCollector
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.launch.test_remote_commands import KEY, client, close_output, output_of
from tests.rollout.proxy.test_clients import FIELDS, HOSTILE, USER, Served

FEW = 150


def sizes(many: int) -> Any:
    return pytest.mark.parametrize("requests", [FEW, pytest.param(many, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served(ProxySettings(request_timeout=20, body_timeout=2, max_body_bytes=100_000))
    yield served
    served.close()


class Attacker:
    """Draws requests; ``keys`` are those that it holds or forges, ``paths`` where it sends them."""

    def __init__(self, seed: int, keys: list[str], paths: list[str]) -> None:
        self.rng, self.keys, self.paths = random.Random(seed), keys, paths

    def body(self) -> bytes:
        rng = self.rng
        body: Any = {field: rng.choice(HOSTILE) for field in rng.sample(FIELDS, rng.randint(0, 6))}
        if rng.random() < 0.4:
            body |= {"messages": USER, "max_tokens": 4}
        if rng.random() < 0.3:
            body |= {"reward": rng.choice([1, 0.5, -1e9, 1e10, "1", True, None, {}, [1.0], 1e308])}
        if rng.random() < 0.2:
            body |= {"turn": rng.choice([0, -1, 99, "x", 2**63, None, True, 0.5])}
        raw = json.dumps(body).encode()
        shape = rng.random()
        if shape < 0.08:
            return raw[: rng.randint(0, len(raw))]
        if shape < 0.12:
            return bytes(rng.randrange(256) for _ in range(rng.randint(0, 60)))
        if shape < 0.15:
            return rng.choice([b"[" * 5000, b'{"a":' * 3000, b'{"user": "' + b"x" * 150_000 + b'"}', b"NaN",
                b"9" * 5000,
                               b'{"reward": NaN}', b'{"reward": Infinity}', b'{"reward": 1e999}',
                               b"\xef\xbb\xbf{}"])  # fmt: skip
        return raw

    def send(self, http: httpx.Client) -> httpx.Response:
        key, path = self.rng.choice(self.keys), self.rng.choice(self.paths)
        headers = {b"authorization": self.rng.choice([b"Bearer ", b"bearer ", b"Basic ", b""]) + key.encode("latin-1")}
        if self.rng.random() < 0.7:
            headers = {b"authorization": b"Bearer " + key.encode("latin-1")}
        if self.rng.random() < 0.05:
            headers[b"x-" + b"y" * self.rng.randint(1, 2000)] = b"z" * self.rng.randint(0, 8000)
        method = self.rng.choice(["POST"] * 7 + ["GET", "DELETE", "PUT", "HEAD", "PATCH", "OPTIONS"])
        return http.request(method, path, content=self.body(), headers=headers)


def forged(served: Served, *victims: Any) -> list[str]:
    """Keys that open nothing, near to those that do."""
    keys = ["nobody", "tl-", "tl--", "é", "x" * 4000, "admin-", "client-", "\x7f", served.rig.settings.admin_key[:-1]]
    return keys + [
        one for victim in victims for one in (victim.api_key[:-1], f"tl-{victim.session_id}-", victim.session_id)
    ]


def root(served: Served) -> str:
    return str(served.rig.server.base_url.removesuffix("/v1"))


def attack(served: Served, attacker: Attacker, requests: int, hidden: tuple[str, ...]) -> Counter[int]:
    """The statuses of ``requests`` answers, none of which shows a text of ``hidden``."""
    seen: Counter[int] = Counter()
    with httpx.Client(base_url=root(served), timeout=20) as http:
        for _ in range(requests):
            answer = attacker.send(http)
            seen[answer.status_code] += 1
            assert answer.status_code < 500, answer.text[:500]
            for text in hidden:
                assert text not in answer.text
            if answer.status_code >= 400 and answer.request.method != "HEAD":
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return seen


@sizes(9_000)
def test_the_proxy(served: Served, requests: int) -> None:
    rig = served.rig
    victim, mine = rig.store.start(task_id="secret-task"), rig.store.start()
    paths = ["/v1/chat/completions"] * 6 + [
        "/v1/completions",
        "/v1/models",
        "/v1/models/..%2f..%2fetc",
        "/sessions",
        "/metrics",
    ]
    paths += [
        "/nowhere",
        "/v1/chat/completions/",
        "//v1/models",
        "/%00",
        "/v1/models/" + "x" * 3000,
        "/openapi.json",
        "/health",
    ]
    paths += [f"/sessions/{victim.session_id}{tail}" for tail in ("", "/reward", "/end", "/export")]
    keys = [rig.settings.client_key, mine.api_key, *forged(served, victim)]
    seen = attack(served, Attacker(11, keys, paths), requests, ("secret-task", victim.api_key, rig.settings.admin_key))
    assert expected(requests, {200, 403, 405}) <= set(seen) and not seen.keys() & {301, 302, 307}, seen
    assert victim.turns == 0 and victim.final_reward is None and not victim.closed
    assert victim.in_flight == mine.in_flight == 0 and rig.service.meter._held == 0
    served.call(works(served))


def expected(requests: int, rare: set[int]) -> set[int]:
    """The statuses that must have been seen; of few requests not the rare ones."""
    return {400, 401, 404} | (rare if requests > FEW else set())


async def works(served: Served) -> None:
    """Those who hold a key are served as before."""
    session = served.rig.store.start()
    answer = await served.rig.post(session.api_key, {"messages": USER})
    assert answer.status_code == 200 and session.turns == 1


@sizes(4_000)
def test_sessions(served: Served, requests: int) -> None:
    """Holders of session keys and of the admin key send nonsense about their own sessions."""
    rig = served.rig
    other = rig.store.start(task_id="secret-task")
    rng = random.Random(5)
    seen: Counter[int] = Counter()
    while (left := requests - sum(seen.values())) > 0:
        mine = rig.store.start()
        paths = [
            f"/sessions/{mine.session_id}{tail}"
            for tail in ("", "/reward", "/reward", "/end", "/export", "/x", "/end/")
        ]
        paths += [
            "/v1/chat/completions",
            f"/sessions/{other.session_id}/export",
            "/sessions",
            "/sessions/",
            "/sessions/%2e%2e",
        ]
        attacker = Attacker(rng.randrange(10**9), [mine.api_key, mine.api_key, *forged(served, other)], paths)
        seen += attack(served, attacker, min(left, 40), ("secret-task", other.api_key))
        if mine.final_reward is not None:
            assert math.isfinite(mine.final_reward)
        for node in mine.nodes:
            assert node.reward is None or math.isfinite(node.reward)
        rig.store.abort(mine.session_id)
    attacker = Attacker(3, [rig.settings.admin_key], ["/sessions"])
    attack(served, attacker, requests // 10, (other.api_key,))
    assert expected(requests, {200}) <= set(seen), seen
    assert other.turns == 0 and other.final_reward is None and not other.closed
    served.call(works(served))


@sizes(4_000)
async def test_online_mode(requests: int) -> None:
    """Outside programs hold session keys, and end, reward and abort as they like: only whole groups with finite rewards
    are collected, and the honest group among them is whole."""
    served = await asyncio.to_thread(Served, ProxySettings(request_timeout=20, body_timeout=2, max_body_bytes=100_000))
    try:
        rig = served.rig
        collector = served.call(_collector(served))
        collecting = asyncio.run_coroutine_threadsafe(
            collector.collect(CollectPlan(10**6, 2), deadline=3600), served.loop
        )

        def play() -> None:
            rng, done = random.Random(9), 0
            while done < requests:
                mine = rig.store.start(group_id=rng.choice(["", "g", "g", "h", "x" * 500]), task_id="t")
                paths = [f"/sessions/{mine.session_id}{tail}" for tail in ("/reward", "/end", "/end", "")]
                attacker = Attacker(
                    rng.randrange(10**9), [mine.api_key], [*paths, "/v1/chat/completions", "/v1/chat/completions"]
                )
                attack(served, attacker, min(requests - done, 20), ())
                done += 20
                rig.store.abort(mine.session_id)
            for reward in (0.0, 1.0):
                honest = rig.store.start(group_id="honest", task_id="t")
                with httpx.Client(base_url=root(served), headers={"Authorization": f"Bearer {honest.api_key}"}) as http:
                    assert http.post("/v1/chat/completions", json={"messages": USER}).status_code == 200
                    assert http.post(f"/sessions/{honest.session_id}/end", json={"reward": reward}).status_code == 200

        await asyncio.to_thread(play)
        await asyncio.sleep(0.2)
        assert not collecting.done(), "hostile sessions ended the collection"
        ready = [group for _, group in collector._ready]
        collecting.cancel()
        assert all(len(group.rollouts) == 2 and all(map(math.isfinite, group.rewards)) for group in ready)
        assert len(rig.store) == 0
    finally:
        await asyncio.to_thread(served.close)


async def _collector(served: Served) -> OnlineCollector:
    return OnlineCollector(served.rig.store)


def hostile_lines(rng: random.Random, nonce: str, seen: list[bytes]) -> bytes:
    """What a stranger sends to a node agent. ``seen`` are earlier messages, to be sent again."""
    request = json.dumps({"name": "n", "command": ["touch", "executed"], "devices": [], "environment": {}})
    proofs = ["", "x", "0" * 64, signature("another key", nonce, request), signature("", nonce, request), "é" * 64,
        "\udcff",
              signature(KEY, "0" * 32, request), nonce, "\x00" * 64, "A" * 127]  # fmt: skip
    shape = rng.random()
    if shape < 0.5:
        return f"{rng.choice(proofs)}\n{request}\n".encode("utf-8", "surrogateescape")
    if shape < 0.6 and seen:
        return rng.choice(seen)
    if shape < 0.7:
        return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    if shape < 0.8:
        return b"x" * rng.choice([0, 1, 127, 128, 129, 5000])
    if shape < 0.85:
        return b"\n" * 50
    return bytes(rng.randrange(256) for _ in range(rng.randint(0, 300)))


@sizes(3_000)
def test_node_agents(requests: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    server = CommandServer("127.0.0.1", KEY)
    launched: list[Any] = []
    right = server.launch

    def launch(request: dict[str, Any]) -> Any:
        launched.append(request)
        return right(request)

    monkeypatch.setattr(server, "launch", launch)
    monkeypatch.setattr(remote_commands, "HANDSHAKE_SECONDS", 5.0)
    host, _, port = server.address.rpartition(":")
    rng, seen = random.Random(2), list[bytes]()
    before = threading.active_count()
    try:
        for _ in range(requests):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                nonce = connection.makefile("rb").readline().strip().decode()
                message = hostile_lines(rng, nonce, seen)
                seen[:] = [*seen[-20:], message]
                try:
                    connection.sendall(message)
                    if rng.random() < 0.5:
                        connection.shutdown(socket.SHUT_WR)
                        assert connection.recv(100) == b"", "a stranger got an answer"
                except OSError:
                    pass  # it was closed already
        assert launched == []
        process = client(server, [sys.executable, "-c", "print('served')"])
        assert output_of(process) == "served\n" and len(launched) == 1
        close_output(process)
        until(lambda: threading.active_count() <= before + 1)
    finally:
        server.close()
    assert "Traceback" not in capfd.readouterr().err


def until(done: Any, seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_strangers_take_no_more_than_their_places_and_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_commands, "HANDSHAKE_SECONDS", 1.5)
    monkeypatch.setattr(remote_commands, "STRANGERS", 8)
    server = CommandServer("127.0.0.1", KEY)
    host, _, port = server.address.rpartition(":")
    try:
        waiting = [socket.create_connection((host, int(port)), timeout=10) for _ in range(8)]
        assert all(len(one.recv(100)) == 33 for one in waiting), "each gets a number to sign"
        with socket.create_connection((host, int(port)), timeout=10) as late:
            assert late.recv(100) == b"", "there is no place"
        began = time.monotonic()
        drip = waiting[0]
        with pytest.raises(OSError):
            while time.monotonic() < began + 10:
                drip.sendall(b"x")  # a byte now and then: the time is that of the whole request
                time.sleep(0.1)
        assert time.monotonic() - began < 5
        process = client(server, [sys.executable, "-c", "print('served')"])
        assert output_of(process) == "served\n"
        close_output(process)
        for one in waiting:
            one.close()
    finally:
        server.close()
