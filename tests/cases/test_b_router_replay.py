"""Router replay from the engine's answer to the micro-batch: through client, proxy, sessions and export."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pytest
import torch
from aiohttp import web

from tau2_lightning.algorithm import GRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.rank_zero import RankZeroRollouts
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.proxy.app import create_app
from tau2_lightning.rollout.proxy.chat_service import ChatService
from tau2_lightning.rollout.proxy.server import ProxyServer
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionStore
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import exit_code
from tau2_lightning.run.router_replay import with_router_replay
from tau2_lightning.segments import shared_tokens
from tau2_lightning.telemetry.phases import PhaseClock
from tau2_lightning.telemetry.router_replay import ReplayWatch
from tau2_lightning.trajectory import Group, Rollout
from tests.cases.policies import policy_described
from tests.fake_service import FakeService, group
from tests.rollout.engine.fake_vllm import FakeVLLM
from tests.rollout.proxy.fixtures import byte_tokenizer, template

LAYERS, USED = 2, 3
GENERATE = "/inference/v1/generate"
Array = npt.NDArray[Any]


def experts_of(row: Sequence[int], dtype: type = np.uint8) -> Array:
    """The experts [T, layers, k] that the fake engine chooses: at each position by all tokens up to there."""
    found = [hashlib.sha256(repr(list(row[: t + 1])).encode()).digest()[: LAYERS * USED] for t in range(len(row))]
    return np.array([list(digest) for digest in found], dtype).reshape(-1, LAYERS, USED)


def encoded(array: Array) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


class RoutingVLLM(FakeVLLM):
    """A fake vLLM that returns experts as vLLM 0.32 does: from ``routed_experts_prompt_start`` to the last position
    that was computed. ``change`` may spoil them."""

    dtype: type = np.uint8

    def __init__(self) -> None:
        super().__init__((17, 18, 19, 258))
        self.behave[GENERATE] = self._generate
        self.change: Callable[[Array], str | None] = encoded

    async def _generate(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        answer = self.answer()
        choice, prompt = answer["choices"][0], body["token_ids"]
        start = body["sampling_params"].get("routed_experts_prompt_start", 0)
        rows = experts_of([*prompt, *choice["token_ids"]], self.dtype)[start:-1]
        choice["routed_experts"] = self.change(rows)
        if not body.get("stream"):
            return web.json_response(answer)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        whole = choice["token_ids"], choice["logprobs"]["content"]
        for i, (token, score) in enumerate(zip(*whole, strict=True)):
            last = i + 1 == len(whole[0])
            event = {**choice, "token_ids": [token], "logprobs": {"content": [score]}}
            if not last:
                event |= {"finish_reason": None, "weight_versions": None, "routed_experts": None}
            await response.write(b"data: " + orjson.dumps({"choices": [event]}) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def proxy(vllm: FakeVLLM, **settings: Any) -> AsyncIterator[tuple[ChatService, Any]]:
    """A proxy on a real port over a client of ``vllm``; yields its service and a function that posts a request."""
    import httpx

    await vllm.start()
    chat_format = ChatFormat(byte_tokenizer(template("tiny")), "hermes")
    async with EnginePool(EngineSettings(urls=(vllm.url,))) as pool:
        await pool.wait_ready()
        service = ChatService(SessionStore(), chat_format, pool, ProxySettings(max_new_tokens=64, **settings))
        server = ProxyServer(create_app(service))
        await server.start()
        async with httpx.AsyncClient(base_url=server.base_url, timeout=20) as http:

            async def post(key: str, messages: list[dict[str, Any]], *, stream: bool = False) -> dict[str, Any]:
                body = {"messages": messages, "stream": stream}
                headers = {"Authorization": f"Bearer {key}"}
                answer = await http.post("/chat/completions", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                if not stream:
                    return answer.json()["choices"][0]["message"]
                events = [orjson.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
                said = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
                return {"role": "assistant", "content": said}

            yield service, post
        await server.stop()
    await vllm.stop()


async def talk(service: ChatService, post: Any, words: Sequence[str], *, stream: bool = False) -> Any:
    """A session in which the user says ``words``, one after each answer."""
    session = service.store.start()
    messages: list[dict[str, Any]] = []
    for word in words:
        messages.append({"role": "user", "content": word})
        messages.append(await post(session.api_key, messages, stream=stream))
    return session, messages


def batch_of(service: ChatService, *sessions: Any) -> Batch:
    rollouts = [
        Rollout("t", "g", i, float(i % 2), service.store.export(session.session_id))
        for i, session in enumerate(sessions)
    ]
    return Batch.from_groups([Group("g", "t", tuple(rollouts))], GRPO(), version=0)


def check_rows(batch: Batch, dtype: torch.dtype = torch.uint8) -> None:
    """Every position of every row, but the last, has the experts that the engine chose there."""
    again = Batch.from_bytes(batch.to_bytes())
    for each in (batch, again):
        for mb in each.microbatches(10_000):
            routed = mb["model"].routed
            assert routed is not None and routed.index.dtype == dtype
            for i, length in enumerate(mb["lengths"].tolist()):
                want = experts_of(mb["input_ids"][i, :length].tolist()).astype(np.int64)
                assert torch.equal(routed.index[i, : length - 1].long(), torch.from_numpy(want)[:-1])
                assert routed.known[i].tolist() == [t < length - 1 for t in range(routed.known.shape[1])]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_the_experts_of_every_turn_reach_the_micro_batch(stream: bool) -> None:
    vllm = RoutingVLLM()
    async with proxy(vllm, return_routed_experts=True) as (service, post):
        one, _ = await talk(service, post, ["a", "b", "c"], stream=stream)
        two, _ = await talk(service, post, ["a", "other"], stream=stream)
        # Of a later turn only what is new travels: the tokens since the last turn, and that turn's last token.
        asked = [body["sampling_params"]["routed_experts_prompt_start"] for body in vllm.bodies if "token_ids" in body]
        ends = [node.sampled.end for node in one.nodes]
        assert asked[:3] == [0, ends[0] - 1, ends[1] - 1]
        check_rows(batch_of(service, one, two))


async def test_a_branch_has_the_experts_of_its_own_path() -> None:
    async with proxy(RoutingVLLM(), return_routed_experts=True) as (service, post):
        session, messages = await talk(service, post, ["a", "b", "c"])
        await post(session.api_key, [*messages[:2], {"role": "user", "content": "another way"}])
        await post(session.api_key, [{"role": "user", "content": "all anew"}])
        assert len(list(session.leaves())) == 3
        other, _ = await talk(service, post, ["a"])
        check_rows(batch_of(service, session, other))


async def test_more_than_256_experts_travel_as_int16() -> None:
    vllm = RoutingVLLM()
    vllm.dtype = np.uint16
    async with proxy(vllm, return_routed_experts=True) as (service, post):
        sessions = [(await talk(service, post, [word]))[0] for word in "ab"]
        check_rows(batch_of(service, *sessions), torch.int16)


@pytest.mark.parametrize("change", [lambda experts: None, lambda experts: encoded(experts[1:])], ids=["none", "short"])
async def test_turns_without_a_fitting_record_are_trained_without_one(change: Any) -> None:
    vllm = RoutingVLLM()
    async with proxy(vllm, return_routed_experts=True) as (service, post):
        one, messages = await talk(service, post, ["a"])
        vllm.change = change
        await post(one.api_key, [*messages, {"role": "user", "content": "b"}])
        two, _ = await talk(service, post, ["z"])
        shared = shared_tokens(one.nodes[1].sampled, two.nodes[0].sampled)
        for mb in batch_of(service, one, two).microbatches(10_000):
            routed = mb["model"].routed
            assert routed is not None and mb["loss_mask"].any()
            first = one.nodes[0].sampled.end
            for length, known in zip(mb["lengths"].tolist(), routed.known, strict=True):
                # The second session's prompt begins as the first's: these tokens are one segment of the forest.
                assert int(known.sum()) == (first - 1 if length == one.nodes[1].sampled.end else shared - 1)


@pytest.mark.parametrize("spoilt", ["###", encoded(np.ones((2, 3), np.uint8)), encoded(np.ones((2, 3, 1), np.float32))])
async def test_records_that_cannot_be_read_are_the_engines_fault(spoilt: str) -> None:
    vllm = RoutingVLLM()
    vllm.change = lambda experts: spoilt
    async with proxy(vllm, return_routed_experts=True) as (service, post):
        session = service.store.start()
        with pytest.raises(AssertionError, match="bad answer"):
            await post(session.api_key, [{"role": "user", "content": "a"}])
        assert not session.nodes


async def test_nothing_is_asked_without_the_key_or_outside_a_session() -> None:
    vllm = RoutingVLLM()
    async with proxy(vllm) as (service, post):
        sessions = [(await talk(service, post, [word]))[0] for word in "ab"]
        assert all(mb["model"].routed is None for mb in batch_of(service, *sessions).microbatches(10_000))
    other = RoutingVLLM()
    async with proxy(other, return_routed_experts=True) as (service, post):
        await post(service.settings.client_key, [{"role": "user", "content": "a"}])
    asked = [body["sampling_params"] for body in (*vllm.bodies, *other.bodies) if "token_ids" in body]
    assert len(asked) == 3 and not any("routed_experts_prompt_start" in params for params in asked)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with as many layers and experts a token as the fake engine's."""
    changes = {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": LAYERS,
        "layer_types": None, "num_experts": 256, "num_experts_per_tok": USED, "moe_intermediate_size": 16,
    }  # fmt: skip
    return policy_described(tmp_path_factory.mktemp("moe"), changes)


async def test_an_engine_that_returns_no_experts_is_said_once_and_trained_without(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm = RoutingVLLM()
    vllm.change = lambda experts: None  # what an engine answers that was started without the flag
    watch = ReplayWatch(model)
    async with proxy(vllm, return_routed_experts=True) as (service, post):
        batch = batch_of(service, *[(await talk(service, post, [word]))[0] for word in "ab"])
    assert all(mb["model"].routed is None and mb["loss_mask"].any() for mb in batch.microbatches(10_000))
    assert watch.look(batch) == watch.look(batch) == {"router/replayed": 0.0}
    told = capsys.readouterr().err
    assert told.count("warning: router replay: the engine returned no experts") == 1
    assert "rollout.return_routed_experts=false" in told


async def test_experts_of_another_model_end_the_run_with_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm = RoutingVLLM()
    async with proxy(vllm, return_routed_experts=True) as (service, post):
        right = batch_of(service, *[(await talk(service, post, [word]))[0] for word in "ab"])
        vllm.change = lambda experts: encoded(experts[:, :, :2])
        wrong = batch_of(service, *[(await talk(service, post, [word]))[0] for word in "cd"])
    assert ReplayWatch(model).look(right) == {"router/replayed": 1.0}
    assert capsys.readouterr().err == "", "nothing to say"
    assert exit_code(lambda: int(bool(ReplayWatch(model).look(wrong)))) == 1
    told = capsys.readouterr().err
    assert told.startswith(
        "error: InfrastructureFault: engine: wrong experts: it returned experts of 2 layers, 2 for a"
    )
    assert "the policy has 2 layers, 3 for a token" in told and "rollout.return_routed_experts=false" in told


class Numbers(Iterator[int]):
    """Tasks without end, whose position is kept."""

    def __init__(self) -> None:
        self.drawn = 0

    def __next__(self) -> int:
        self.drawn += 1
        return self.drawn

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}


async def test_the_run_looks_at_every_batch(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A whole collection of rank 0 without any record: the metric is there, the batch is trained on."""
    config = load_config(["domain=mock", f"actor.path={model}", "actor=tiny"], check=False)
    config = with_router_replay(config, model)
    service = FakeService([group(0, [1.0, 0.0, 0.0, 1.0])])
    monkeypatch.setattr("tau2_lightning.rank_zero.RolloutService", lambda *_, **__: service)
    rollouts = RankZeroRollouts(config, model, GRPO(), run_dir=tmp_path, clock=PhaseClock())
    rollouts.start(torch.device("cpu"))
    batch = rollouts.collect(Numbers())  # type: ignore[arg-type]
    assert batch.trained_tokens and rollouts.metrics["router/replayed"] == 0.0
