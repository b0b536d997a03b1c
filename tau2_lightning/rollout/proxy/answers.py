"""OpenAI's response objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.message import ParsedMessage
from tau2_lightning.rollout.engine.generation import Generation

from .calls import ChatCall
from .prompts import Prepared


@dataclass(frozen=True)
class Choice:
    """One finished choice: its message as sent to the client, and what was sampled."""

    message: dict[str, Any]
    finish_reason: str
    generation: Generation


def completion(work: Prepared, choices: Sequence[Choice], chat_format: ChatFormat) -> dict[str, Any]:
    """A ``chat.completion`` object."""
    return {
        "id": work.completion_id,
        "object": "chat.completion",
        "created": work.created,
        "model": work.call.model,
        "choices": [
            {
                "index": index,
                "message": choice.message,
                "finish_reason": choice.finish_reason,
                "logprobs": logprobs(work.call, choice.generation, chat_format),
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage(len(work.prompt), [choice.generation for choice in choices]),
    }


def assistant_message(work: Prepared, parsed: ParsedMessage, index: int) -> dict[str, Any]:
    """The message of choice ``index``."""
    message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
    if parsed.reasoning_content is not None:
        message["reasoning_content"] = parsed.reasoning_content
    calls = parsed.tool_calls if work.call.parallel_tool_calls else parsed.tool_calls[:1]
    if calls:
        functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
        message["tool_calls"] = tool_calls(work, index, functions)
    elif parsed.content is None:
        message["content"] = ""
    return message


def tool_calls(work: Prepared, index: int, functions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ``tool_calls`` of choice ``index``."""
    return [
        {"id": work.call_id(index, at), "type": "function", "function": function}
        for at, function in enumerate(functions)
    ]


def logprobs(call: ChatCall, generation: Generation, chat_format: ChatFormat) -> dict[str, Any] | None:
    """The ``logprobs`` object (nats), None when the request did not ask for it."""
    if call.top_logprobs is None:
        return None
    entries = []
    for at, (token, logprob) in enumerate(zip(generation.token_ids, generation.logprobs, strict=True)):
        ranked = generation.top_logprobs[at] if at < len(generation.top_logprobs) else {}
        best = sorted(ranked.items(), key=lambda item: -item[1])[: call.top_logprobs]
        top = [_token(other, value, chat_format) for other, value in best]
        entries.append({**_token(token, logprob, chat_format), "top_logprobs": top})
    return {"content": entries, "refusal": None}


def _token(token: int, logprob: float, chat_format: ChatFormat) -> dict[str, Any]:
    text = chat_format.token_text(token)
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}


def usage(prompt_tokens: int, generations: Sequence[Generation]) -> dict[str, Any]:
    """The ``usage`` object of ``generations`` sampled from ``prompt_tokens`` tokens."""
    sampled = sum(len(generation.token_ids) for generation in generations)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": sampled,
        "total_tokens": prompt_tokens + sampled,
        "prompt_tokens_details": {"cached_tokens": max((g.cached_tokens for g in generations), default=0)},
    }
