"""Streamed chat completions: the engine's chunks become OpenAI chunks as they arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from tau2_lightning.rollout.chat.message_stream import MessageStream, json_stream, message_stream
from tau2_lightning.rollout.chat.tools import Delta
from tau2_lightning.rollout.engine.cut_off import join
from tau2_lightning.rollout.engine.generation import Generation

from .answers import logprobs, tool_calls, usage
from .chat_service import ChatService
from .prompts import Prepared

# (choice, delta, finish reason, logprobs)
_Item = tuple[int, dict[str, Any], str | None, Any]


class ChatStream:
    """The chunks of one streamed chat completion, all ``n`` choices interleaved as they are sampled."""

    def __init__(self, service: ChatService, work: Prepared) -> None:
        self._service, self._work = service, work
        self._generations: list[Generation] = []

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks in order; raises what the engine raises. Closing it aborts what is still being sampled."""
        work = self._work
        async with aclosing(self._interleaved()) as deltas:
            async for index, delta, reason, scores in deltas:
                yield self._chunk(index, delta, reason, scores)
        if work.call.include_usage:
            yield {**self._frame(), "choices": [], "usage": usage(len(work.prompt), self._generations)}

    async def _interleaved(self) -> AsyncGenerator[_Item, None]:
        if self._work.call.n == 1:
            async with aclosing(self._choice(0)) as choice:
                async for item in choice:
                    yield item
            return
        queue: asyncio.Queue[_Item | BaseException | None] = asyncio.Queue()
        pumps = [asyncio.create_task(self._pump(index, queue)) for index in range(self._work.call.n)]
        try:
            running = len(pumps)
            while running:
                got = await queue.get()
                if isinstance(got, BaseException):
                    raise got
                if got is None:
                    running -= 1
                else:
                    yield got
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, index: int, queue: asyncio.Queue[_Item | BaseException | None]) -> None:
        try:
            async with aclosing(self._choice(index)) as choice:
                async for item in choice:
                    queue.put_nowait(item)
        except Exception as error:  # noqa: BLE001  # whoever reads the queue raises it
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    async def _choice(self, index: int) -> AsyncGenerator[_Item, None]:
        service, work = self._service, self._work
        message = self._message_stream()
        parts: list[Generation] = []
        began = time.perf_counter()
        stream = service.engine.stream(
            work.prompt,
            work.choice_sampling(index),
            session=work.session.session_id if work.session else None,
            deadline=service.settings.request_timeout,
        )
        async with aclosing(cast(AsyncGenerator[Generation, None], stream)) as generations:
            async for part in generations:
                if not parts:  # not earlier: a request that fails immediately still gets its status
                    yield index, {"role": "assistant", "content": ""}, None, None
                parts.append(part)
                scores = logprobs(work.call, part, service.format)
                sent = False
                for delta in message.feed(part.token_ids, last=part.finish_reason != ""):
                    yield index, self._delta(index, delta), None, None if sent else scores
                    sent = True
                if scores is not None and not sent and part.token_ids:
                    yield index, {}, None, scores
        whole = replace(join(parts), seconds=time.perf_counter() - began)
        parsed = service.turns.parse(work, whole)
        for delta in message.finish(parsed):
            yield index, self._delta(index, delta), None, None
        choice = service.turns.record(work, whole, self._assembled(index, message), parsed.invalid_format)
        self._generations.append(whole)
        yield index, {}, choice.finish_reason, None

    def _message_stream(self) -> MessageStream:
        work = self._work
        if work.grammar is not None and not work.grammar.native:
            return json_stream(
                self._service.format,
                stop=work.sampling.stop,
                calls=work.grammar.calls,
                parallel=work.call.parallel_tool_calls,
            )
        return message_stream(
            self._service.format,
            tools=work.native_tools,
            prompt_tail=work.prompt_tail,
            stop=work.sampling.stop,
            parallel=work.call.parallel_tool_calls,
        )

    def _assembled(self, index: int, message: MessageStream) -> dict[str, Any]:
        """The message as the client has assembled it, and will send it back."""
        whole: dict[str, Any] = {"role": "assistant", "content": message.sent_content or None}
        if message.sent_reasoning:
            whole["reasoning_content"] = message.sent_reasoning
        if message.sent_calls:
            whole["tool_calls"] = tool_calls(self._work, index, message.sent_calls)
        elif whole["content"] is None:
            whole["content"] = ""
        return whole

    def _delta(self, index: int, delta: Delta) -> dict[str, Any]:
        if delta.call is None:
            return {"reasoning_content": delta.reasoning} if delta.reasoning else {"content": delta.content}
        function = {"name": delta.name, "arguments": delta.arguments}
        call = self._work.call_id(index, delta.call)
        return {"tool_calls": [{"index": delta.call, "id": call, "type": "function", "function": function}]}

    def _frame(self) -> dict[str, Any]:
        work = self._work
        return {
            "id": work.completion_id,
            "object": "chat.completion.chunk",
            "created": work.created,
            "model": work.call.model,
        }

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None, logprobs: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._frame(), "choices": [choice]}
        if self._work.call.include_usage:
            chunk["usage"] = None
        return chunk
