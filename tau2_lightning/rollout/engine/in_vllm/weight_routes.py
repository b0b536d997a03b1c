"""ASGI middleware for vLLM's API server: routes that take weights over HTTP. `RequireKey` checks the key before.

All routes begin with ``/tau2-lightning/weights``:

- GET: answers ``{"store", "version"}``, the id of the store and the version that it holds;
- POST ``/begin`` ``{"sizes", "base"}``: begins an upload of files, answers ``{"upload"}``;
- POST ``/chunk?upload=&part=&offset=&checksum=``: writes a part of a file, at most 32 MiB, which is the body;
- POST ``/commit`` ``{"upload", "version", "digests"}``: checks and keeps the files, answers ``{"paths"}`` for
  ``/update_weights``;
- POST ``/drop``: frees the memory of the weights.

Refusals answer 4xx or 507 with ``{"error"}``; see `WeightStore`.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qs

import orjson
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .names import WEIGHTS
from .weight_store import CHUNK_BYTES, RefusedError, WeightStore


class TakeWeights:
    """Answers requests whose path begins with ``WEIGHTS``, one at a time; all others go on to vLLM."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.store = WeightStore()
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(WEIGHTS):
            await self.app(scope, receive, send)
            return
        status, answer = 200, dict[str, Any]()
        try:
            length = Headers(scope=scope).get("content-length")
            body = await _read(receive, None if length is None else int(length))
            async with self._lock:
                # In a thread: hashing gigabytes must not keep the server from generating.
                answer = await asyncio.to_thread(self._answer, scope, body)
        except RefusedError as refused:
            status, answer = refused.status, {"error": refused.reason}
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, IndexError) as error:
            status, answer = 400, {"error": f"cannot read the request: {error!r}"}
        await Response(orjson.dumps(answer), status, media_type="application/json")(scope, receive, send)

    def _answer(self, scope: Scope, body: bytes) -> dict[str, Any]:
        route = (scope["method"], scope["path"].removeprefix(WEIGHTS))
        store = self.store
        if route == ("GET", ""):
            return dict(store.state)
        if route == ("POST", "/chunk"):
            query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
            store.write(query["upload"], int(query["part"]), int(query["offset"]), body, query["checksum"])
            return {}
        if route == ("POST", "/begin"):
            request = orjson.loads(body)
            return {"upload": store.begin([int(size) for size in request["sizes"]], request["base"])}
        if route == ("POST", "/commit"):
            request = orjson.loads(body)
            return {"paths": store.commit(request["upload"], request["version"], request["digests"])}
        if route == ("POST", "/drop"):
            store.drop()
            return {}
        raise RefusedError(404, f"no route {' '.join(route)} of weights")


async def _read(receive: Receive, length: int | None) -> bytes:
    """The request's body. Raises RefusedError when it is too long, or ends before ``length``."""
    if (length or 0) > CHUNK_BYTES:
        raise RefusedError(413, f"a body has at most {CHUNK_BYTES} bytes")
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise RefusedError(400, "the body is incomplete")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > CHUNK_BYTES:
            raise RefusedError(413, f"a body has at most {CHUNK_BYTES} bytes")
    if length is not None and len(body) != length:
        raise RefusedError(400, f"the body is incomplete: {len(body)} of {length} bytes")
    return bytes(body)
