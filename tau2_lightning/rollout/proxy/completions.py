"""Text completions for plain clients: text or token ids as input, text as output."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, cast

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.chat.message_stream import TextStream
from tau2_lightning.rollout.engine.cut_off import join
from tau2_lightning.rollout.engine.generation import Generation, SamplingParams

from .answers import usage
from .calls import includes_usage, sampling_params
from .chat_service import ChatService
from .checks import checked
from .errors import invalid
from .wire import TextRequest

_MAX_PROMPTS = 64
_DEFAULT_TOKENS = 16  # OpenAI's default for this route


@dataclass(frozen=True)
class CompletionCall:
    """A checked request: every prompt is continued ``n`` times."""

    completion_id: str
    created: int
    model: str
    prompts: list[list[int]]
    sampling: list[SamplingParams]
    n: int
    stream: bool
    include_usage: bool
    logprobs: int | None


class CompletionService:
    """Answers text completion requests."""

    def __init__(self, chat: ChatService) -> None:
        self._chat = chat

    def prepare(self, body: Mapping[str, Any]) -> CompletionCall:
        """Check a request. Raises APIError 400."""
        settings, budget = self._chat.settings, self._chat.prompts.budget
        request = checked(body, TextRequest)
        if request.echo:
            raise invalid("echo is not supported", "echo", "unsupported_parameter")
        prompts = self._prompts(request.prompt)
        tokens = request.max_tokens or _DEFAULT_TOKENS
        sampling = sampling_params(request, settings, tokens, request.logprobs or 0)
        return CompletionCall(
            completion_id="cmpl-" + secrets.token_hex(12),
            created=int(time.time()),
            model=request.model or settings.model_name,
            prompts=prompts,
            sampling=[replace(sampling, max_tokens=budget(len(prompt), tokens)) for prompt in prompts],
            n=request.n or 1,
            stream=bool(request.stream),
            include_usage=includes_usage(request),
            logprobs=request.logprobs,
        )

    async def complete(self, call: CompletionCall) -> dict[str, Any]:
        """An OpenAI ``text_completion`` object."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._sample(call, index)) for index in range(call.n * len(call.prompts))]
        results = [task.result() for task in tasks]
        choices = []
        for index, generation in enumerate(results):
            text = TextStream(self._chat.format, call.sampling[0].stop).feed(generation.token_ids, last=True)
            choices.append(self._choice(call, index, text, generation, generation.finish_reason))
        return {**self._frame(call), "choices": choices, "usage": self._usage(call, results)}

    async def chunks(self, call: CompletionCall) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a streamed completion, choice after choice."""
        results = []
        for index in range(call.n * len(call.prompts)):
            text = TextStream(self._chat.format, call.sampling[0].stop)
            stream = self._chat.engine.stream(*self._request(call, index), deadline=self._chat.settings.request_timeout)
            parts, offset = [], 0
            async with aclosing(cast(AsyncGenerator[Generation, None], stream)) as generations:
                async for part in generations:
                    parts.append(part)
                    last = part.finish_reason != ""
                    piece = text.feed(part.token_ids, last=last)
                    choice = self._choice(call, index, piece, part, part.finish_reason or None, offset)
                    offset += sum(map(len, choice["logprobs"]["tokens"])) if choice["logprobs"] else 0
                    yield {**self._frame(call), "choices": [choice]}
            results.append(self._finished(join(parts)))
        if call.include_usage:
            yield {**self._frame(call), "choices": [], "usage": self._usage(call, results)}

    async def _sample(self, call: CompletionCall, index: int) -> Generation:
        deadline = self._chat.settings.request_timeout
        return self._finished(await self._chat.engine.generate(*self._request(call, index), deadline=deadline))

    def _finished(self, generation: Generation) -> Generation:
        if generation.finish_reason == "abort":
            raise InfrastructureFault("engine", "aborted", "the engine gave up on this request")
        self._chat.metrics.completion(len(generation.token_ids), generation.finish_reason, False)
        return generation

    def _request(self, call: CompletionCall, index: int) -> tuple[list[int], SamplingParams]:
        prompt, choice = divmod(index, call.n)
        sampling = call.sampling[prompt]
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + choice)
        return call.prompts[prompt], sampling

    def _prompts(self, prompt: str | list[int | str | list[int]]) -> list[list[int]]:
        if isinstance(prompt, str):
            return [self._tokens(prompt)]
        if len(prompt) > self._chat.engine.max_model_len:
            raise invalid("prompt must be a string, token ids, or a list of these", "prompt")
        if all(type(item) is int for item in prompt):
            return [self._tokens(prompt)]
        if len(prompt) > _MAX_PROMPTS:
            raise invalid(f"more than {_MAX_PROMPTS} prompts", "prompt")
        return [self._tokens(item) for item in prompt]

    def _tokens(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str) and prompt:
            return self._chat.format.encode(prompt)
        size = self._chat.format.vocabulary_size
        if isinstance(prompt, list) and prompt and all(type(item) is int and 0 <= item < size for item in prompt):
            return prompt
        raise invalid("a prompt must be a non-empty string or a list of token ids of the vocabulary", "prompt")

    def _frame(self, call: CompletionCall) -> dict[str, Any]:
        return {
            "id": call.completion_id,
            "object": "text_completion",
            "created": call.created,
            "model": call.model,
        }

    def _choice(
        self,
        call: CompletionCall,
        index: int,
        text: str,
        generation: Generation,
        reason: str | None,
        offset: int = 0,
    ) -> dict[str, Any]:
        logprobs = None
        if call.logprobs is not None:
            words = [self._chat.format.token_text(token) for token in generation.token_ids]
            ranked = [
                {
                    self._chat.format.token_text(t): v
                    for t, v in sorted(top.items(), key=lambda i: -i[1])[: call.logprobs]
                }
                for top in generation.top_logprobs
            ]
            logprobs = {
                "tokens": words,
                "token_logprobs": list(generation.logprobs),
                "top_logprobs": ranked or None,
                "text_offset": list(accumulate(map(len, words), initial=offset))[:-1],
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _usage(self, call: CompletionCall, results: list[Generation]) -> dict[str, Any]:
        return usage(sum(map(len, call.prompts)), results)
