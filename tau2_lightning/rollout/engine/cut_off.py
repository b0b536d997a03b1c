"""Completions that end at their deadline. The tokens sampled until then are the policy's turn, as at ``max_tokens``.

A policy that thinks for too long is not a fault of the engine. It is a fault if the engine has produced no token, or
none in the last `generation.PROGRESS_SECONDS`. There are two ways to get the tokens at the deadline:

- Our extension of vLLM (`in_vllm.generate`) gets the deadline with the request. It then aborts the request, and vLLM
  returns the tokens with their log-probs and weight versions.
- Other servers, and requests that take vLLM's own route, cannot do so. There, a long completion is read as a stream.
  Its tokens get the weight version that the server had at the start, which is the oldest possible one.
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

#: Time after the deadline for the answer of a server that ends the request itself.
ANSWER_SECONDS = 5.0
#: Longer completions are read as streams if the server cannot end them. Shorter ones are not, because a stream costs
#: the server one message per token.
STREAM_ABOVE = 256


async def sample_within(
    client: EngineClient, token_ids: Sequence[int], sampling: SamplingParams, seconds: float, version: int
) -> Generation:
    """One continuation. After ``seconds`` it ends with ``finish_reason`` length and ``cut``.

    ``version`` is the server's weight version. Raises TimeoutError when the engine made no progress, and the errors of
    the client.
    """
    if client.ends_in_time(sampling):
        async with asyncio.timeout(seconds + ANSWER_SECONDS):
            generation = await client.generate(token_ids, sampling, within=seconds)
        if generation.cut and generation.finish_reason != "length":
            raise TimeoutError
        return generation
    if sampling.max_tokens > STREAM_ABOVE:
        return join([chunk async for chunk in stream_within(client, token_ids, sampling, seconds, version)])
    async with asyncio.timeout(seconds):
        return await client.generate(token_ids, sampling)


async def stream_within(
    client: EngineClient, token_ids: Sequence[int], sampling: SamplingParams, seconds: float, version: int
) -> AsyncGenerator[Generation, None]:
    """The chunks of one continuation. If it does not end within ``seconds``, the last one is a `last_chunk`.

    ``version`` is the server's weight version. Raises TimeoutError when the engine made no progress, and the errors of
    the client.
    """
    tokens, newest, ended = 0, time.monotonic(), False
    ends = newest + seconds
    async with aclosing(cast("AsyncGenerator[Generation, None]", client.stream(token_ids, sampling))) as chunks:
        while True:
            try:
                async with asyncio.timeout(ends - time.monotonic()):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if ended:  # only the end of the connection is late
                    return
                if not progresses(tokens, time.monotonic() - newest):
                    raise
                yield last_chunk(tokens, version)
                return
            tokens, newest = tokens + len(chunk.token_ids), time.monotonic()
            ended = ended or bool(chunk.finish_reason)
            yield chunk


def last_chunk(tokens: int, version: int) -> Generation:
    """The last chunk of a stream that its deadline cuts off after ``tokens`` tokens."""
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
