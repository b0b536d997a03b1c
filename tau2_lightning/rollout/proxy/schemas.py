"""The OpenAPI description of request bodies. Validation itself is by hand (``proxy_request``): this is the document."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(properties: Schema, required: tuple[str, ...] = (), **more: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), **more}


def _number(low: float, high: float, **more: Any) -> Schema:
    return {"type": ["number", "null"], "minimum": low, "maximum": high, **more}


def _integer(low: int, high: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


def _body(schema: Schema, *statuses: int) -> Schema:
    """``openapi_extra`` of a route that reads ``schema`` and may answer with ``statuses`` besides 200."""
    error = {"application/json": {"schema": ERROR}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {str(status): {"description": _WHY[status], "content": error} for status in statuses},
    }


_WHY = {
    400: "The request is wrong, or too long for the model (context_length_exceeded)",
    401: "No key, or one that opens nothing",
    403: "The key does not open this",
    404: "No such session, turn or model",
    408: "The body did not arrive in time",
    409: "The session takes no more requests",
    413: "The body is too large",
    429: "Too many requests or sessions",
    503: "The engine is down or the proxy is full",
    504: "The engine did not answer in time",
}
ERROR = _object({"error": _object({
    "message": {"type": "string"},
    "type": {"type": "string"},
    "param": {"type": ["string", "null"]},
    "code": {"type": ["string", "null"]},
}, ("message", "type", "param", "code"))}, ("error",))  # fmt: skip
_FLAG: Schema = {"type": ["boolean", "null"]}
_TEXT_PART = _object({"type": {"const": "text"}, "text": {"type": "string"}}, ("type", "text"))
_CONTENT: Schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART}]}
_CALL = _object({
    "id": {"type": "string"},
    "type": {"const": "function"},
    "function": _object({"name": {"type": "string"}, "arguments": {"type": "string"}}, ("name", "arguments")),
}, ("function",))  # fmt: skip
MESSAGE = _object({
    "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
    "content": _CONTENT,
    "reasoning_content": {"type": "string"},
    "tool_calls": {"type": "array", "items": _CALL},
    "tool_call_id": {"type": "string"},
    "name": {"type": "string"},
}, ("role", "content"))  # fmt: skip
TOOL = _object({
    "type": {"const": "function"},
    "function": _object({
        "name": {"type": "string", "minLength": 1},
        "description": {"type": "string"},
        "parameters": {"type": "object"},
    }, ("name",)),
}, ("type", "function"))  # fmt: skip
_NAMED = _object(
    {"type": {"const": "function"}, "function": _object({"name": {"type": "string"}}, ("name",))}, ("type", "function")
)
_SAMPLING: Schema = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1, exclusiveMinimum=0),
    "top_k": _integer(-1, 2**31 - 1),
    "min_p": _number(0, 1),
    "max_tokens": _integer(1, 2**31 - 1),
    "stop": {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 1}, {
        "type": "array", "maxItems": 16, "items": {"type": "string", "minLength": 1}}]},
    "stop_token_ids": {"type": ["array", "null"], "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}},
    "seed": _integer(-(2**63), 2**63 - 1),
    "n": _integer(1, 32),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "repetition_penalty": _number(0, 10, exclusiveMinimum=0),
    "logit_bias": {"type": ["object", "null"], "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                   "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
    "ignore_eos": _FLAG,
    "stream": _FLAG,
    "stream_options": {"anyOf": [{"type": "null"}, _object({"include_usage": _FLAG})]},
}  # fmt: skip
_CHAT_OPTIONS: Schema = {
    **_SAMPLING,
    "max_completion_tokens": _integer(1, 2**31 - 1),
    "logprobs": _FLAG,
    "top_logprobs": _integer(0, 20),
    "parallel_tool_calls": _FLAG,
    "response_format": {"anyOf": [{"type": "null"}, _object(
        {"type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {"type": "object"}}, ("type",))]},
    "tool_choice": {"anyOf": [{"type": "null"}, {"enum": ["auto", "none", "required"]}, _NAMED]},
}  # fmt: skip
_KWARGS: Schema = {"type": ["object", "null"], "description": "e.g. enable_thinking"}
_TOOLS: Schema = {"type": ["array", "null"], "items": TOOL}
CHAT_DOC = _body(
    _object(
        {
            "model": {"type": "string"},
            "messages": {"type": "array", "minItems": 1, "items": MESSAGE},
            "tools": _TOOLS,
            "chat_template_kwargs": _KWARGS,
            **_CHAT_OPTIONS,
        },
        ("messages",),
    ),
    400, 401, 408, 409, 413, 429, 503, 504,
)  # fmt: skip
_TOKENS: Schema = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_PROMPT: Schema = {"anyOf": [{"type": "string", "minLength": 1}, _TOKENS]}
COMPLETION_DOC = _body(
    _object(
        {
            "model": {"type": "string"},
            "prompt": {"anyOf": [*_PROMPT["anyOf"], {"type": "array", "minItems": 1, "items": _PROMPT}]},
            **_SAMPLING,
            "logprobs": _integer(0, 20),
            "echo": {"enum": [False, None]},
        },
        ("prompt",),
    ),
    400, 401, 408, 413, 429, 503, 504,
)  # fmt: skip
START_DOC = _body(
    _object(
        {
            "task_id": {"type": "string"},
            "group_id": {"type": "string"},
            "metadata": {"type": "object"},
            "tools": _TOOLS,
            "chat_template_kwargs": _KWARGS,
            "sampling": _object(_CHAT_OPTIONS, description="Defaults for requests that leave these out"),
        }
    ),
    400, 401, 403, 408, 413, 429,
)  # fmt: skip
_REWARD: Schema = {"type": "number", "minimum": -1e9, "maximum": 1e9}
REWARD_DOC = _body(
    _object({"reward": _REWARD, "turn": {"type": ["integer", "string", "null"]}}, ("reward",)),
    400, 401, 404, 408, 409, 413, 429,
)  # fmt: skip
END_DOC = _body(_object({"reward": {**_REWARD, "type": ["number", "null"]}}), 400, 401, 404, 408, 409, 413, 429)
