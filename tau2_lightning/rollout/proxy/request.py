"""An OpenAI request body -> typed values. By hand, because validating a whole history per turn is what makes proxies
slow; everything that would change the result and is not supported is refused, never dropped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tau2_lightning.rollout.engine.generation import SamplingParams

from .errors import invalid
from .settings import ProxySettings

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_SHARED = {
    "model", "temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "seed", "n", "logprobs", "stream",
    "stream_options", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "ignore_eos",
    "stop_token_ids",
}  # fmt: skip
CHAT_FIELDS = _SHARED | {
    "messages", "tools", "tool_choice", "parallel_tool_calls", "max_completion_tokens", "top_logprobs",
    "response_format", "chat_template_kwargs",
}  # fmt: skip
COMPLETION_FIELDS = _SHARED | {"prompt", "echo", "suffix", "best_of"}
# Bookkeeping of the client's: no effect on what is sampled.
IGNORED = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
})  # fmt: skip


@dataclass(frozen=True)
class ToolChoice:
    """``mode``: auto, none, required or named (then ``name`` is the function)."""

    mode: str = "auto"
    name: str | None = None


@dataclass(frozen=True)
class ChatCall:
    """One checked chat completion request. ``sampling.max_tokens`` is 0 where the request did not say."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
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


def refuse_unknown(body: Mapping[str, Any], known: frozenset[str] | set[str]) -> None:
    """400 for a field that is neither supported nor mere bookkeeping. A null means that the field is absent."""
    for key, value in body.items():
        if key not in known and key not in IGNORED and value is not None:
            raise invalid(f"unsupported parameter {key[:64]!r}", key[:64], "unsupported_parameter")


def number(
    body: Mapping[str, Any], key: str, default: float, low: float, high: float, *, open_low: bool = False
) -> float:
    """A finite number in [low, high] (or (low, high] with ``open_low``)."""
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise invalid(f"{key} must be a number", key)
    if not (low < value if open_low else low <= value) or value > high:
        raise invalid(f"{key} must be {'above' if open_low else 'at least'} {low:g} and at most {high:g}", key)
    return float(value)


def integer(body: Mapping[str, Any], key: str, default: int | None, low: int, high: int) -> int | None:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(f"{key} must be an integer", key)
    if not low <= value <= high:
        raise invalid(f"{key} must lie in [{low}, {high}]", key)
    return value


def boolean(body: Mapping[str, Any], key: str, default: bool) -> bool:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid(f"{key} must be true or false", key)
    return value


def stop_strings(body: Mapping[str, Any]) -> tuple[str, ...]:
    value = body.get("stop")
    if value is None:
        return ()
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or len(words) > 16 or not all(isinstance(w, str) and w for w in words):
        raise invalid("stop must be a non-empty string or a list of at most 16 of them", "stop")
    return tuple(words)


def sampling_params(body: Mapping[str, Any], settings: ProxySettings, *, logprobs: int) -> SamplingParams:
    """The sampling fields common to chat and text completions; ``max_tokens`` 0 means that none was given."""
    limit = integer(body, "max_completion_tokens", None, 1, 2**31 - 1) or integer(body, "max_tokens", 0, 1, 2**31 - 1)
    bias = body.get("logit_bias") or {}
    if not isinstance(bias, dict) or len(bias) > 1024:
        raise invalid("logit_bias must be an object of at most 1024 token ids", "logit_bias")
    biases = {}
    for key in bias:
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10):
            raise invalid("the keys of logit_bias must be token ids", "logit_bias")
        biases[int(key)] = number(bias, key, 0.0, -100, 100)
    stop_ids = body.get("stop_token_ids") or []
    if not isinstance(stop_ids, list) or not all(type(i) is int and 0 <= i < 2**31 for i in stop_ids):
        raise invalid("stop_token_ids must be a list of token ids", "stop_token_ids")
    return SamplingParams(
        max_tokens=limit or 0,
        temperature=number(body, "temperature", settings.temperature, 0, 2),
        top_p=number(body, "top_p", 1.0, 0, 1, open_low=True),
        top_k=_top_k(body),
        min_p=number(body, "min_p", 0.0, 0, 1),
        seed=integer(body, "seed", None, -(2**63), 2**63 - 1),
        stop=stop_strings(body),
        stop_token_ids=tuple(stop_ids),
        logprobs=logprobs,
        frequency_penalty=number(body, "frequency_penalty", 0.0, -2, 2),
        presence_penalty=number(body, "presence_penalty", 0.0, -2, 2),
        repetition_penalty=number(body, "repetition_penalty", 1.0, 0, 10, open_low=True),
        logit_bias=biases,
        ignore_eos=boolean(body, "ignore_eos", False),
    )


def _top_k(body: Mapping[str, Any]) -> int:
    value = integer(body, "top_k", -1, -1, 2**31 - 1)
    return value or -1  # 0 and -1 both mean "no limit"


def check_messages(messages: Any, limit: int) -> list[dict[str, Any]]:
    """The conversation, shallowly checked: roles, text contents, well-formed tool calls. Raises APIError 400."""
    if not isinstance(messages, list) or not messages:
        raise invalid("messages must be a non-empty list", "messages")
    if len(messages) > limit:
        raise invalid(f"more than {limit} messages", "messages")
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            raise invalid("must be an object", f"messages[{at}]")
        if not isinstance(message.get("role"), str) or message["role"] not in ROLES:
            raise invalid(f"role must be one of {', '.join(sorted(ROLES))}", f"messages[{at}].role")
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            _check_parts(content, f"messages[{at}].content")
        for key in ("reasoning_content", "name", "tool_call_id", "refusal"):
            if message.get(key) is not None and not isinstance(message[key], str):
                raise invalid("must be a string", f"messages[{at}].{key}")
        calls = message.get("tool_calls")
        if calls is not None:
            _check_calls(calls, f"messages[{at}].tool_calls")
        elif content is None and message["role"] != "assistant":
            raise invalid("content is required", f"messages[{at}].content")
    return messages


def _check_parts(content: Any, where: str) -> None:
    if not isinstance(content, list):
        raise invalid("must be a string or a list of text parts", where)
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise invalid("only text parts are supported", where, "unsupported_content")


def _check_calls(calls: Any, where: str) -> None:
    if not isinstance(calls, list):
        raise invalid("must be a list", where)
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid("each needs a function with a name", where)
        arguments = function.get("arguments")
        if arguments is not None and not isinstance(arguments, str | dict):
            raise invalid("arguments must be a JSON string", where)
        if call.get("id") is not None and not isinstance(call["id"], str):
            raise invalid("id must be a string", where)


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Function tools. Raises APIError 400."""
    if not isinstance(tools, list) or len(tools) > 1024:
        raise invalid("tools must be a list of at most 1024 tools", "tools")
    for at, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type", "function") != "function":
            raise invalid("only function tools are supported", f"tools[{at}]")
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise invalid("a function needs a name", f"tools[{at}].function.name")
        if not isinstance(function.get("parameters") or {}, dict):
            raise invalid("parameters must be a JSON schema object", f"tools[{at}].function.parameters")
    return tools


def tool_choice(value: Any, tools: Sequence[Mapping[str, Any]] | None) -> ToolChoice:
    if value is None:
        return ToolChoice()
    if value in ("auto", "none", "required") and isinstance(value, str):
        if value == "required" and not tools:
            raise invalid("tool_choice 'required' needs tools", "tool_choice")
        return ToolChoice(value)
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in {tool["function"]["name"] for tool in tools or ()}:
        raise invalid("tool_choice must be auto, none, required or one of the tools", "tool_choice")
    return ToolChoice("named", name)


def chat_call(
    body: Mapping[str, Any],
    settings: ProxySettings,
    resolve_tools: Callable[[Any], Sequence[Mapping[str, Any]] | None],
    template_kwargs: Mapping[str, Any],
) -> ChatCall:
    """Check a chat completion request. ``resolve_tools`` checks (and caches) the ``tools`` field; ``template_kwargs``
    are the session's, overridden key by key by the request's. Raises APIError 400."""
    refuse_unknown(body, CHAT_FIELDS)
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise invalid("model must be a string", "model")
    messages = check_messages(body.get("messages"), settings.max_messages)
    tools = resolve_tools(body.get("tools"))
    kwargs = body.get("chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise invalid("chat_template_kwargs must be an object", "chat_template_kwargs")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise invalid("stream_options must be an object", "stream_options")
    wants_logprobs = boolean(body, "logprobs", False)
    top = integer(body, "top_logprobs", None, 0, 20)
    if top is not None and not wants_logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    return ChatCall(
        messages=messages,
        tools=tools,
        sampling=sampling_params(body, settings, logprobs=top or 0),
        model=model or settings.model_name,
        tool_choice=tool_choice(body.get("tool_choice"), tools),
        parallel_tool_calls=boolean(body, "parallel_tool_calls", True),
        n=integer(body, "n", 1, 1, settings.max_n) or 1,
        stream=boolean(body, "stream", False),
        include_usage=boolean(options or {}, "include_usage", False),
        top_logprobs=(top or 0) if wants_logprobs else None,
        template_kwargs={**template_kwargs, **kwargs} if kwargs else template_kwargs,
        response_format=response_format(body.get("response_format")),
    )


def response_format(value: Any) -> Mapping[str, Any] | None:
    """``{"json": schema}`` for a JSON answer, None for text. Raises APIError 400."""
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json": {"type": "object"}}
    if kind == "json_schema":
        wrapper = value.get("json_schema")
        schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
        if isinstance(schema, dict):
            return {"json": schema}
    raise invalid("response_format must be text, json_object or json_schema with a schema", "response_format")
