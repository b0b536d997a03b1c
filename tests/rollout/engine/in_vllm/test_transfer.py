"""Our code in vLLM's API server: the key check of every route, and the fast path of the generate route."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import pytest

pytest.importorskip("vllm")

from vllm.exceptions import VLLMValidationError
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput, WeightVersionSpan
from vllm.v1.metrics.stats import RequestStateStats

from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.in_vllm.auth import RequireKey
from tau2_lightning.rollout.engine.in_vllm.generate import FastGenerate, plain_request
from tau2_lightning.rollout.engine.in_vllm.names import GENERATE
from tau2_lightning.rollout.engine.wire import parse_generation, request_body

# Importing vLLM takes as long as all other unit tests of the engine.
pytestmark = pytest.mark.slow

PLAIN = request_body([1, 2, 3], SamplingParams(max_tokens=2), model=None, seeds=False)


class ScriptedEngine:
    """Replaces vLLM's engine client."""

    def __init__(self, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.error, self.seconds, self.aborted = error, seconds, False
        self.seen: list[tuple[list[int], int, int]] = []
        self.model_config = type("Config", (), {"max_model_len": 100})()

    async def generate(self, prompt: Any, sampling: Any, name: str) -> Any:
        self.seen.append((prompt["prompt_token_ids"], sampling.max_tokens, sampling.logprobs))
        if self.error:
            raise self.error
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.aborted = True
            raise
        logprobs = [{7: Logprob(-0.25, rank=1)}, {8: Logprob(float("-inf"), rank=2)}]
        spans = [WeightVersionSpan("3", 0, 1), WeightVersionSpan("4", 1, 2)]
        output = CompletionOutput(0, "", [7, 8], None, logprobs, finish_reason="length", weight_versions=spans)
        yield RequestOutput(name, None, prompt["prompt_token_ids"], None, [output], True, num_cached_tokens=2)


async def slow_route(scope: Any, receive: Any, send: Any) -> None:
    """Replaces vLLM's own route: answers 299, to be recognised, with the request's body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def call(
    app: Any, body: bytes, engine: Any = None, *, leave_after: float | None = None, **scope: Any
) -> tuple[int, bytes]:
    parts = [body[: len(body) // 2], body[len(body) // 2 :]]
    messages = [{"type": "http.request", "body": part, "more_body": index == 0} for index, part in enumerate(parts)]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(60 if leave_after is None else leave_after)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    application = type("App", (), {"state": type("State", (), {"engine_client": engine})()})()
    await app(
        {"type": "http", "method": "POST", "path": GENERATE, "headers": [], "app": application, **scope}, receive, send
    )
    return (sent[0]["status"], sent[1]["body"]) if sent else (0, b"")


async def test_a_plain_request_is_answered_as_vllm_would():
    engine = ScriptedEngine()
    status, body = await call(FastGenerate(slow_route), PLAIN, engine)
    assert status == 200 and engine.seen == [([1, 2, 3], 2, 0)]
    generation = parse_generation(orjson.loads(body), SamplingParams(max_tokens=2))
    assert generation.token_ids == (7, 8) and generation.versions == (3, 4)
    assert generation.logprobs == (-0.25, -9999.0) and generation.finish_reason == "length"
    assert (generation.prompt_tokens, generation.cached_tokens) == (3, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"stream": True},
        {"model": "adapter"},
        {"token_ids": []},
        {"token_ids": ["1"]},
        {"token_ids": [True]},
        {"token_ids": list(range(99))},  # with two more tokens, this exceeds the model's length
        {"sampling_params": {"max_tokens": 2, "logprobs": 3, "detokenize": False}},
        {"sampling_params": {"max_tokens": 2, "logprobs": 0, "stop": ["x"]}},
        {"sampling_params": {"max_tokens": 2, "logprobs": 0, "detokenize": False, "structured_outputs": {}}},
        {"sampling_params": {"max_tokens": 2, "logprobs": 0, "detokenize": False, "temperature": -1}},
        {"sampling_params": {"logprobs": 0, "detokenize": False}},
    ],
)
async def test_everything_else_takes_vllms_route_with_its_whole_body(change):
    body = orjson.dumps(orjson.loads(PLAIN) | change)
    engine = ScriptedEngine()
    assert await call(FastGenerate(slow_route), body, engine) == (299, body)
    assert not engine.seen


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"null"])
async def test_nonsense_takes_vllms_route(body):
    assert plain_request(body) is None
    assert await call(FastGenerate(slow_route), body) == (299, body)


async def test_a_refusal_is_worded_by_vllm():
    engine = ScriptedEngine(VLLMValidationError("token id out of range"))
    assert await call(FastGenerate(slow_route), PLAIN, engine) == (299, PLAIN)


class EndlessEngine(ScriptedEngine):
    """Samples a token every 10 ms until it is aborted; its last output then holds them, as vLLM's does."""

    def __init__(self, sampled: bool = True) -> None:
        super().__init__()
        self.sampled, self.ended = sampled, asyncio.Event()
        self.began = time.monotonic()

    async def generate(self, prompt: Any, sampling: Any, name: str) -> Any:
        self.name = name
        await self.ended.wait()
        tokens = [7, 8] if self.sampled else []
        logprobs = [{token: Logprob(-0.25, rank=1)} for token in tokens]
        spans = [WeightVersionSpan("3", 0, len(tokens))] if tokens else None
        output = CompletionOutput(0, "", tokens, None, logprobs, finish_reason="abort", weight_versions=spans)
        stats = RequestStateStats(last_token_ts=self.began)
        yield RequestOutput(name, None, prompt["prompt_token_ids"], None, [output], True, metrics=stats)

    async def abort(self, name: str) -> None:
        assert name == self.name
        self.ended.set()


async def test_at_its_deadline_a_request_ends_with_what_is_sampled():
    headers = [(b"x-tau2-lightning-deadline", b"0.1")]
    status, body = await call(FastGenerate(slow_route), PLAIN, EndlessEngine(), headers=headers)
    answer = orjson.loads(body)
    assert status == 200 and 0.1 <= answer["choices"][0]["cut_after_idle_s"] < 5
    generation = parse_generation(answer, SamplingParams(max_tokens=2))
    assert (generation.token_ids, generation.logprobs, generation.versions) == ((7, 8), (-0.25, -0.25), (3, 3))
    assert (generation.finish_reason, generation.cut) == ("length", True)


async def test_at_its_deadline_a_request_without_a_token_says_so():
    headers = [(b"x-tau2-lightning-deadline", b"0.05")]
    status, body = await call(FastGenerate(slow_route), PLAIN, EndlessEngine(sampled=False), headers=headers)
    generation = parse_generation(orjson.loads(body), SamplingParams(max_tokens=2))
    assert status == 200 and (generation.token_ids, generation.finish_reason) == ((), "abort") and generation.cut


async def test_a_request_that_ends_before_its_deadline_is_not_marked():
    headers = [(b"x-tau2-lightning-deadline", b"30")]
    _, body = await call(FastGenerate(slow_route), PLAIN, ScriptedEngine(), headers=headers)
    assert "cut_after_idle_s" not in orjson.loads(body)["choices"][0]


async def test_leaving_aborts():
    engine = ScriptedEngine(seconds=30)
    assert await asyncio.wait_for(call(FastGenerate(slow_route), PLAIN, engine, leave_after=0.05), 5) == (0, b"")
    await asyncio.sleep(0.05)
    assert engine.aborted


async def test_other_paths_pass():
    assert await call(FastGenerate(slow_route), PLAIN, path="/v1/models") == (299, PLAIN)


def test_a_draw_taken_back_is_drawn_again():
    import torch

    from tau2_lightning.rollout.engine.in_vllm.transfer import RewindableGenerator

    generator = RewindableGenerator(device="cpu")
    assert isinstance(generator, torch.Generator) and torch.Generator is not RewindableGenerator
    generator.manual_seed(5)
    first = torch.randint(0, 1000, (4,), generator=generator)
    generator.set_offset(generator.get_offset() - 4)
    assert torch.equal(torch.randint(0, 1000, (4,), generator=generator), first)
    assert not torch.equal(torch.randint(0, 1000, (4,), generator=generator), first)


async def test_the_key_guards_everything_but_health(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    app = RequireKey(slow_route)
    for headers in ([], [(b"authorization", b"Bearer wrong")], [(b"authorization", b"secret")]):
        assert (await call(app, b"{}", path="/pause", headers=headers))[0] == 401
    assert (await call(app, b"{}", path="/pause", headers=[(b"authorization", b"Bearer secret")]))[0] == 299
    assert (await call(app, b"{}", path="/health"))[0] == 299
    assert (await call(app, b"{}", path="/health/../pause"))[0] == 401


def test_new_experts_are_packed_as_the_first_ones_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM itself packs only the first weights, in its set-up; the repair packs exactly the later ones."""
    from tau2_lightning.rollout.engine.in_vllm import expert_weights

    packed: list[str] = []

    class Kernel:
        fused_experts: Any = None

        def process_weights_after_loading(self, layer: str) -> None:
            packed.append(layer)

    class Method:
        moe_kernel: Any = None

        def _setup_kernel(self, layer: str, w13: None, w2: None) -> None:
            if self.moe_kernel is None:
                self.moe_kernel = Kernel()
                self.moe_kernel.fused_experts = self.moe_kernel
                self.moe_kernel.process_weights_after_loading(layer)

    monkeypatch.setattr(expert_weights, "UnquantizedFusedMoEMethod", Method)
    expert_weights.repack_reloaded_experts()
    expert_weights.repack_reloaded_experts()  # a second call must not pack twice
    method = Method()
    for layer in ("first", "second", "third"):
        method._setup_kernel(layer, None, None)
    assert packed == ["first", "second", "third"]
