"""Reading request bodies over HTTP: bounded in size and time, JSON objects only."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import Request

from .errors import APIError, invalid
from .settings import ProxySettings


async def read_object(request: Request, settings: ProxySettings) -> dict[str, Any]:
    """The request's JSON object. Raises APIError 400, 408 or 413."""
    limit = settings.max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
    except TimeoutError as error:
        raise APIError(408, "request_timeout", f"no complete body within {settings.body_timeout:g} s") from error
    try:
        body = orjson.loads(b"".join(chunks))
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise invalid("the body must be a JSON object", code="invalid_json")
    return body


def _too_large(limit: int) -> APIError:
    return APIError(413, "request_too_large", f"the body is larger than {limit} bytes")
