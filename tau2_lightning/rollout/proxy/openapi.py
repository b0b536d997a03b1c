"""The OpenAPI description of request bodies and error answers, made from the structs that check them."""

from __future__ import annotations

from typing import Any

import msgspec

from .wire import ChatRequest, EndRequest, RewardRequest, StartRequest, TextRequest

Schema = dict[str, Any]
_REFERENCE = "#/$defs/"
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
_NULLABLE: Schema = {"type": ["string", "null"]}
_ERROR: Schema = {
    "type": "object",
    "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": _NULLABLE, "code": _NULLABLE},
    "required": ["message", "type", "param", "code"],
}
ERROR: Schema = {"type": "object", "properties": {"error": _ERROR}, "required": ["error"]}


def body_doc(kind: type[msgspec.Struct], *statuses: int) -> Schema:
    """``openapi_extra`` of a route that reads a ``kind`` and may answer with ``statuses`` besides success."""
    (schema,), parts = msgspec.json.schema_components([kind], ref_template=_REFERENCE + "{name}")
    error = {"application/json": {"schema": ERROR}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(schema, parts)}}},
        "responses": {str(status): {"description": _WHY[status], "content": error} for status in statuses},
    }


def _inlined(schema: Any, parts: Schema) -> Any:
    """``schema`` with every reference replaced by what it names: FastAPI's document has no place for ours."""
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if (reference := schema.get("$ref")) is not None:
        return _inlined(parts[reference.removeprefix(_REFERENCE)], parts)
    return {key: _inlined(value, parts) for key, value in schema.items() if key not in ("title", "discriminator")}


CHAT_DOC = body_doc(ChatRequest, 400, 401, 408, 409, 413, 429, 503, 504)
TEXT_DOC = body_doc(TextRequest, 400, 401, 408, 413, 429, 503, 504)
START_DOC = body_doc(StartRequest, 400, 401, 403, 408, 413, 429)
REWARD_DOC = body_doc(RewardRequest, 400, 401, 404, 408, 409, 413, 429)
END_DOC = body_doc(EndRequest, 400, 401, 404, 408, 409, 413, 429)
