"""A checked chat completion request with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tau2_lightning.rollout.chat.message import Tools
from tau2_lightning.rollout.engine.generation import SamplingParams

from .checks import check_messages, checked
from .errors import invalid
from .settings import ProxySettings
from .wire import ChatRequest, JsonFormat, NamedTool, Sampling, SchemaFormat


@dataclass(frozen=True)
class ToolChoice:
    """``mode``: auto, none, required or named (then ``name`` is the function)."""

    mode: str = "auto"
    name: str | None = None


@dataclass(frozen=True)
class ChatCall:
    """One chat completion request. ``messages`` are the client's own objects, so that templates see every key.

    ``sampling.max_tokens`` is 0 where the request named none; ``tools`` None where it offered none.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Tools
    sampling: SamplingParams
    model: str = "policy"
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    parallel_tool_calls: bool = True
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    top_logprobs: int | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    response_format: Mapping[str, Any] | None = None


def chat_call(
    body: Mapping[str, Any], settings: ProxySettings, tools: Tools, template_kwargs: Mapping[str, Any]
) -> ChatCall:
    """Check a chat completion request. Raises APIError 400.

    ``tools`` and ``template_kwargs`` are the session's: the request's tools take their place, its template arguments
    override them key by key.
    """
    request = checked(body, ChatRequest)
    check_messages(request.messages, settings.max_messages)
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    offered: Tools = tools if request.tools is None else body["tools"] or None
    top = request.top_logprobs or 0
    kwargs = request.chat_template_kwargs
    return ChatCall(
        messages=body["messages"],
        tools=offered,
        sampling=sampling_params(request, settings, request.max_completion_tokens or request.max_tokens or 0, top),
        model=request.model or settings.model_name,
        tool_choice=_tool_choice(request, offered),
        parallel_tool_calls=request.parallel_tool_calls is not False,
        n=request.n or 1,
        stream=bool(request.stream),
        include_usage=includes_usage(request),
        top_logprobs=top if request.logprobs else None,
        template_kwargs={**template_kwargs, **kwargs} if kwargs else template_kwargs,
        response_format=_response_format(request),
    )


def sampling_params(request: Sampling, settings: ProxySettings, max_tokens: int, logprobs: int) -> SamplingParams:
    """What a request asks of the engine; ``max_tokens`` 0 means that it named none."""
    stop = request.stop
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_or(request.temperature, settings.temperature),
        top_p=_or(request.top_p, 1.0),
        top_k=request.top_k or -1,  # 0 and -1 both mean "no limit"
        min_p=_or(request.min_p, 0.0),
        seed=request.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        logprobs=logprobs,
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        ignore_eos=bool(request.ignore_eos),
    )


def includes_usage(request: Sampling) -> bool:
    """Whether a stream ends with a chunk that counts its tokens."""
    return request.stream_options is not None and bool(request.stream_options.include_usage)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _tool_choice(request: ChatRequest, tools: Tools) -> ToolChoice:
    choice = request.tool_choice
    if choice is None:
        return ToolChoice()
    if isinstance(choice, NamedTool):
        if choice.function.name not in {tool["function"]["name"] for tool in tools or ()}:
            raise invalid("tool_choice must be auto, none, required or one of the tools", "tool_choice")
        return ToolChoice("named", choice.function.name)
    if choice == "required" and not tools:
        raise invalid("tool_choice 'required' needs tools", "tool_choice")
    return ToolChoice(choice)


def _response_format(request: ChatRequest) -> Mapping[str, Any] | None:
    """``{"json": schema}`` for a JSON answer, None for text."""
    match request.response_format:
        case JsonFormat():
            return {"json": {"type": "object"}}
        case SchemaFormat(json_schema=named):
            return {"json": named.schema}
    return None
