"""The broadcast to SGLang's workers: fake servers whose workers, processes of their own, join the group."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import pytest_asyncio
import torch
from aiohttp import web

from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.weights import publisher as publishing
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tau2_lightning.rollout.weights.sglang_transports import GroupTransport
from tests.rollout.engine.fake_sglang import FakeSGLang, serving

BUCKETS = [[("a", torch.full((3, 2), 1.5)), ("b", torch.arange(4.0))], [("c", torch.ones(2, 2, dtype=torch.bfloat16))]]

# As SGLang's `init_custom_process_group`: the store has the group's name twice, once here and once in the helper.
WORKER = """
import json, sys, torch
from datetime import timedelta
from torch.distributed import PrefixStore, TCPStore, BroadcastOptions
from torch.distributed.distributed_c10d import _new_process_group_helper
told = json.loads(sys.stdin.readline())
limit, name = timedelta(seconds=60), told["group_name"]
store = TCPStore(told["master_address"], told["master_port"], told["world_size"], False, limit)
store, rank = PrefixStore(name, store), told["rank_offset"]
group, _ = _new_process_group_helper(
    told["world_size"], rank, [], told["backend"], store, group_name=name, timeout=limit
)
print("joined", flush=True)
options = BroadcastOptions()
options.rootRank = 0
for line in sys.stdin:
    update, got = json.loads(line), {}
    for name, dtype, shape in zip(update["names"], update["dtypes"], update["shapes"]):
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        group.broadcast([tensor], options).wait()
        got[name] = tensor.float().flatten().tolist()
    print(json.dumps(got), flush=True)
"""


class Worker:
    """The worker of one fake server; ``got`` has all tensors that it received."""

    def __init__(self, server: FakeSGLang) -> None:
        self.got: dict[str, list[float]] = {}
        self.processes: list[asyncio.subprocess.Process] = []
        server.behave |= {"/init_weights_update_group": self.join, "/update_weights_from_distributed": self.receive}

    async def join(self, request: web.Request, body: dict) -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, stdin=pipe, stdout=pipe)
        self.processes.append(process)
        assert await self.told(body) == "joined"

    async def receive(self, request: web.Request, body: dict) -> None:
        self.got |= json.loads(await self.told(body))

    async def told(self, body: dict) -> str:
        process = self.processes[-1]
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(body).encode() + b"\n")
        return (await asyncio.wait_for(process.stdout.readline(), 120)).decode().strip()

    async def end(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest_asyncio.fixture
async def servers() -> AsyncIterator[list[FakeSGLang]]:
    async with serving((1, 2, 3), (1, 2, 3)) as made:
        yield made


@pytest_asyncio.fixture
async def workers(servers: list[FakeSGLang]) -> AsyncIterator[list[Worker]]:
    made = [Worker(server) for server in servers]
    yield made
    for worker in made:
        await worker.end()


async def test_workers_of_all_servers_get_every_tensor_and_join_anew_after_a_restart(servers, workers, monkeypatch):
    monkeypatch.setattr(publishing, "choose_transport", lambda *_: GroupTransport())
    settings = EngineSettings(backend="sglang", urls=tuple(server.url for server in servers))
    async with EnginePool(settings) as pool:
        publisher = WeightPublisher(pool, backend="gloo")
        for version in (1, 2):
            await publisher.publish(version, BUCKETS)
            expected = {name: tensor.float().flatten().tolist() for bucket in BUCKETS for name, tensor in bucket}
            assert [worker.got for worker in workers] == [expected, expected]
            assert [server.version for server in servers] == [str(version)] * 2
            for worker in workers:
                worker.got = {}
        assert [len(worker.processes) for worker in workers] == [1, 1], "one group serves many publications"
        pool.members[1].restarts += 1
        await publisher.publish(3, BUCKETS)
        assert [len(worker.processes) for worker in workers] == [2, 2]
        assert workers[0].got and workers[0].got == workers[1].got
