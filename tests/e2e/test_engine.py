"""The real engine: log-probs against transformers, weight sync, versions, deadlines, keys."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import pytest

from tau2_lightning.errors import DeadlineExceeded, ParityError
from tau2_lightning.rollout.engine.generation import EngineRejected, SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.weights.parity import Tolerance, check_parity
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tests.e2e.reference_models import ENGINE, MAX_MODEL_LEN, VOCABULARY, ReferenceModels

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]
only_vllm = pytest.mark.skipif(ENGINE != "vllm", reason="vLLM's own routes and parameters")

TOLERANCE = 1e-4
DEADLINE = 120.0


def random_row(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(length)]


async def publish(pool: EnginePool, reference: ReferenceModels, name: str, version: int, mode: str = "keep") -> None:
    publisher = WeightPublisher(pool)
    report = await publisher.publish(version, reference.buckets(name), mode=mode)  # type: ignore[arg-type]
    assert report.version == version and report.bytes > 1_000_000


async def differences(reference: ReferenceModels, name: str, prompt: list[int], generation, temperature: float = 1.0):
    expected = reference.logprobs(name, [*prompt, *generation.token_ids], temperature)[len(prompt) - 1 :]
    return [abs(ours - theirs) for ours, theirs in zip(generation.logprobs, expected, strict=True)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_sampled_logprobs_equal_a_transformers_forward(engine_pool, reference, temperature):
    await publish(engine_pool, reference, "A", 10)
    sampling = SamplingParams(max_tokens=24, temperature=temperature, ignore_eos=True)
    prompts = [random_row(5 + 60 * i, seed=i) for i in range(16)]
    work = [engine_pool.generate(p, sampling, session=str(i), deadline=DEADLINE) for i, p in enumerate(prompts)]
    generations = await asyncio.gather(*work)
    for prompt, generation in zip(prompts, generations, strict=True):
        assert len(generation.token_ids) == len(generation.logprobs) == len(generation.versions) == 24
        assert generation.finish_reason == "length" and set(generation.versions) == {10}
        assert generation.prompt_tokens == len(prompt)
        assert max(await differences(reference, "A", prompt, generation, temperature)) < TOLERANCE


async def test_growing_conversation_uses_the_prefix_cache_and_stays_exact(engine_pool, reference):
    await publish(engine_pool, reference, "A", 11)
    row, sampling = random_row(200, seed=3), SamplingParams(max_tokens=8, ignore_eos=True)
    for turn in range(4):
        generation = await engine_pool.generate(row, sampling, session="chat", deadline=DEADLINE)
        assert max(await differences(reference, "A", row, generation)) < TOLERANCE
        assert (generation.cached_tokens > 100) == (turn > 0)
        row = [*row, *generation.token_ids, *random_row(20, seed=turn)]


async def test_scores_equal_a_transformers_forward(engine_pool, reference):
    await publish(engine_pool, reference, "A", 12)
    last = reference.models["A"].config.vocab_size - 1  # SGLang writes another id for it
    rows = [random_row(40, seed=8), [*random_row(699, seed=9), last]]
    report = await check_parity(
        engine_pool, rows, [reference.logprobs("A", r) for r in rows], tolerance=Tolerance.largest(TOLERANCE)
    )
    assert report.tokens == 39 + 699 and report.max < TOLERANCE
    with pytest.raises(ParityError, match="version 12"):
        wrong = [reference.logprobs("B", row) for row in rows]
        await check_parity(engine_pool, rows, wrong, tolerance=Tolerance.largest(TOLERANCE), version=12)


async def test_stream_brings_what_generate_brings(engine_pool):
    prompt, greedy = random_row(50, seed=4), SamplingParams(max_tokens=20, temperature=0.0, logprobs=2, ignore_eos=True)
    whole = await engine_pool.generate(prompt, greedy, deadline=DEADLINE)
    chunks = [chunk async for chunk in engine_pool.stream(prompt, greedy, deadline=DEADLINE)]
    assert len(chunks) > 5
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == whole.token_ids
    assert [round(p, 4) for chunk in chunks for p in chunk.logprobs] == [round(p, 4) for p in whole.logprobs]
    assert [chunk.finish_reason for chunk in chunks] == [""] * (len(chunks) - 1) + ["length"]
    assert chunks[-1].stream_versions == whole.versions
    assert all(len(top) >= 2 for top in whole.top_logprobs)


async def test_weights_go_there_and_back_with_tied_embeddings(engine_pool, reference):
    row = random_row(300, seed=5)
    for version, name in ((20, "A"), (21, "B"), (22, "A")):
        await publish(engine_pool, reference, name, version)
        await check_parity(engine_pool, [row], [reference.logprobs(name, row)], tolerance=Tolerance.largest(TOLERANCE))
        assert all(member.version == version for member in engine_pool.members)


@only_vllm
async def test_without_the_tied_head_repair_the_guard_fails(engine_pool, reference):
    await publish(engine_pool, reference, "A", 23)
    client, row = engine_pool.members[0].client, random_row(60, seed=6)
    try:
        await client.control("/collective_rpc", {"method": "set_tied_head_repair", "args": [False]})
        await publish(engine_pool, reference, "B", 24)
        with pytest.raises(ParityError):
            await check_parity(engine_pool, [row], [reference.logprobs("B", row)], tolerance=Tolerance.largest(0.1))
    finally:
        await client.control("/collective_rpc", {"method": "set_tied_head_repair", "args": [True]})
    await publish(engine_pool, reference, "B", 25)
    await check_parity(engine_pool, [row], [reference.logprobs("B", row)], tolerance=Tolerance.largest(TOLERANCE))


async def test_keep_mode_attributes_versions_to_the_right_tokens(engine_pool, reference):
    await publish(engine_pool, reference, "A", 30)
    prompt, sampling = random_row(100, seed=7), SamplingParams(max_tokens=1500, ignore_eos=True)
    running = asyncio.create_task(engine_pool.generate(prompt, sampling, deadline=DEADLINE))
    await asyncio.sleep(0.7)
    await publish(engine_pool, reference, "B", 31, mode="keep")
    generation = await running
    assert set(generation.versions) == {30, 31} and list(generation.versions) == sorted(generation.versions)
    switch = generation.versions.index(31)
    old, new = [await differences(reference, name, prompt, generation) for name in "AB"]
    assert max(old[:switch]) < TOLERANCE and max(new[switch:]) < TOLERANCE
    assert max(new[:switch]) > 0.1 and max(old[switch:]) > 0.1  # negative control: the models do differ


async def test_wait_mode_lets_running_requests_end_on_the_old_weights(engine_pool, reference):
    await publish(engine_pool, reference, "A", 40)
    prompt, sampling = random_row(80, seed=8), SamplingParams(max_tokens=400, ignore_eos=True)
    running = asyncio.create_task(engine_pool.generate(prompt, sampling, deadline=DEADLINE))
    await asyncio.sleep(0.3)
    await publish(engine_pool, reference, "B", 41, mode="wait")
    generation = await running
    assert set(generation.versions) == {40}
    assert max(await differences(reference, "A", prompt, generation)) < TOLERANCE


async def test_small_buckets_bring_the_same_weights(engine_pool, reference):
    publisher = WeightPublisher(engine_pool, keep_snapshot=False)
    report = await publisher.publish(50, [[pair] for pair in reference.weights("A")], mode="keep")
    assert report.bytes == sum(tensor.nbytes for _, tensor in reference.weights("A"))
    row = random_row(90, seed=9)
    await check_parity(engine_pool, [row], [reference.logprobs("A", row)], tolerance=Tolerance.largest(TOLERANCE))


async def test_cancelling_frees_the_engine(engine_pool):
    sampling = SamplingParams(max_tokens=MAX_MODEL_LEN - 60, ignore_eos=True)
    work = [
        asyncio.create_task(engine_pool.generate(random_row(50, seed=i), sampling, deadline=DEADLINE))
        for i in range(64)  # 260 thousand tokens: minutes on any CPU
    ]
    await asyncio.sleep(0.5)
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    client = engine_pool.members[0].client
    async with asyncio.timeout(20):
        await client.pause("wait")  # returns when no request is running
    await client.resume()


async def test_a_deadline_names_the_engine_and_what_it_was_doing(engine_pool):
    sampling = SamplingParams(max_tokens=MAX_MODEL_LEN - 60, ignore_eos=True)
    client = engine_pool.members[0].client
    await client.pause("wait")  # requests wait, so that none makes progress
    try:
        with pytest.raises(DeadlineExceeded, match=r"generating on engine 0 at http://127"):
            await engine_pool.generate(random_row(50), sampling, deadline=0.3)
    finally:
        await client.resume()


async def test_what_the_engine_refuses_is_the_callers_fault(engine_pool):
    with pytest.raises(EngineRejected, match=str(MAX_MODEL_LEN)):
        await engine_pool.generate(random_row(MAX_MODEL_LEN + 1), SamplingParams(max_tokens=1), deadline=DEADLINE)
    with pytest.raises(EngineRejected):
        await engine_pool.generate([VOCABULARY * 100], SamplingParams(max_tokens=1), deadline=DEADLINE)
    assert await engine_pool.health() == {"engine 0": True}


@only_vllm
async def test_seeds_repeat_however_prompts_are_cut_and_kill_no_engine(engine_pool, reference):
    await publish(engine_pool, reference, "A", 60)

    async def seeded(seed: int, length: int) -> tuple[int, ...]:
        sampling = SamplingParams(max_tokens=12, seed=seed, ignore_eos=True)
        return (await engine_pool.generate(random_row(length, seed=1), sampling, deadline=DEADLINE)).token_ids

    alone = [await seeded(seed, length) for seed, length in ((1, 40), (2, 40), (1, 3000))]
    await publish(engine_pool, reference, "A", 61)  # an empty prefix cache: now the prompts are cut into chunks
    crowd = [seeded(seed, 3000) for seed in range(10, 14)]
    together = await asyncio.gather(*crowd, seeded(1, 40), seeded(2, 40), seeded(1, 3000))
    assert list(together[4:]) == alone and alone[0] != alone[1]
    assert await engine_pool.health() == {"engine 0": True}


async def test_sampling_parameters_reach_the_engine(engine_pool, reference):
    prompt = random_row(30)
    last = reference.models["A"].config.vocab_size - 1
    final = SamplingParams(max_tokens=2, logit_bias={last: 100.0}, ignore_eos=True)
    assert (await engine_pool.generate(prompt, final, deadline=DEADLINE)).token_ids == (last, last)
    biased = SamplingParams(max_tokens=4, logit_bias={7: 100.0}, ignore_eos=True)
    assert (await engine_pool.generate(prompt, biased, deadline=DEADLINE)).token_ids == (7, 7, 7, 7)
    stopped = SamplingParams(max_tokens=4, logit_bias={7: 100.0}, stop_token_ids=(7,))
    generation = await engine_pool.generate(prompt, stopped, deadline=DEADLINE)
    assert generation.token_ids == (7,) and generation.finish_reason == "stop"
    narrow = SamplingParams(max_tokens=8, top_k=1, ignore_eos=True)
    greedy = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    both = [await engine_pool.generate(prompt, s, deadline=DEADLINE) for s in (narrow, greedy)]
    assert both[0].token_ids == both[1].token_ids


@only_vllm
@pytest.mark.parametrize("path", ["/pause", "/collective_rpc", "/inference/v1/generate", "/update_weights", "/metrics"])
async def test_strangers_get_nothing_but_health(engine_pool, path):
    url = engine_pool.members[0].client.url
    async with aiohttp.ClientSession() as session:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with session.post(url + path, json={}, headers=headers) as response:
                assert response.status == 401
        async with session.get(url + "/health") as response:
            assert response.status == 200
