"""Completions that end at their deadline: what was sampled by then is the policy's own, as at ``max_tokens``.

A policy that thinks for too long is no fault of the engine. An engine that gives no token, or none for a while before
the deadline (`generation.PROGRESS_SECONDS`), is. How far a request has come is known in two ways:

- Our extension of vLLM (`in_vllm.generate`) is told the deadline. It aborts the request then, and vLLM gives the tokens
  that it has, with their log-probs and weight versions.
- From another server, or for a request that takes vLLM's own route, a long completion is read as a stream. Its tokens
  have the weight version that the server had at the start, which is the oldest possible.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

from tau2_lightning.errors import InfrastructureFault

from .client import EngineClient
from .generation import Generation, SamplingParams, progresses

#: For the answer of a server that ends the request by itself.
ANSWER_SECONDS = 5.0
#: Completions of more tokens are read as streams where the server cannot end them: a stream costs the server a message
#: for each token.
STREAM_ABOVE = 256


async def sample_within(
    client: EngineClient, token_ids: Sequence[int], sampling: SamplingParams, seconds: float, version: int
) -> Generation:
    """One continuation, ended after ``seconds`` with ``finish_reason`` length and ``cut``. ``version`` is the server's
    weight version. Raises TimeoutError when the engine made no progress, and as the client does."""
    if client.ends_in_time(sampling):
        async with asyncio.timeout(seconds + ANSWER_SECONDS):
            generation = await client.generate(token_ids, sampling, within=seconds)
        if generation.cut and generation.finish_reason != "length":
            raise TimeoutError
        return generation
    if sampling.max_tokens > STREAM_ABOVE:
        return await _streamed(client, token_ids, sampling, seconds, version)
    async with asyncio.timeout(seconds):
        return await client.generate(token_ids, sampling)


def last_chunk(tokens: int, version: int) -> Generation:
    """The end of a stream of ``tokens`` tokens that its deadline cuts off."""
    return Generation((), (), (), "length", stream_versions=(version,) * tokens, cut=True)


def join(parts: Sequence[Generation]) -> Generation:
    """The whole of a streamed generation. Raises InfrastructureFault when the engine stopped without an end."""
    if not parts or not parts[-1].finish_reason:
        raise InfrastructureFault("engine", "truncated", "the stream ended before the completion did")
    token_ids = tuple(token for part in parts for token in part.token_ids)
    versions = parts[-1].stream_versions or tuple(version for part in parts for version in part.versions)
    if len(versions) != len(token_ids):
        raise InfrastructureFault("engine", "bad answer", f"{len(token_ids)} tokens with {len(versions)} versions")
    return Generation(
        token_ids,
        tuple(logprob for part in parts for logprob in part.logprobs),
        versions,
        parts[-1].finish_reason,
        tuple(top for part in parts for top in part.top_logprobs),
        max(part.prompt_tokens for part in parts),
        max(part.cached_tokens for part in parts),
        cut=parts[-1].cut,
        experts=parts[-1].experts,
    )


async def _streamed(
    client: EngineClient, token_ids: Sequence[int], sampling: SamplingParams, seconds: float, version: int
) -> Generation:
    parts: list[Generation] = []
    newest = time.monotonic()
    chunks = cast("AsyncGenerator[Generation, None]", client.stream(token_ids, sampling))
    async with aclosing(chunks):
        try:
            async with asyncio.timeout(seconds):
                async for chunk in chunks:
                    parts.append(chunk)
                    newest = time.monotonic()
        except TimeoutError:
            sampled = sum(len(part.token_ids) for part in parts)
            if not progresses(sampled, time.monotonic() - newest):
                raise
            parts.append(last_chunk(sampled, version))
    return join(parts)
