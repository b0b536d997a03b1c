"""ASGI middleware for vLLM's API server: routes that take weights over HTTP. `RequireKey` in front checks the key.

All routes begin with ``/tau2-lightning/weights``:

- GET: ``{"store", "version"}``, what the server holds;
- POST ``/begin`` ``{"sizes", "base"}``: begins an upload of files, answers ``{"upload"}``;
- POST ``/chunk?upload=&part=&offset=&checksum=``: at most 32 MiB of a file as the body;
- POST ``/commit`` ``{"upload", "version", "digests"}``: checks and keeps them, answers ``{"paths"}``, which
  ``/update_weights`` loads;
- POST ``/drop``: frees the memory.

Refusals answer 4xx or 507 with ``{"error"}``; see `WeightStore`.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qs

import orjson

from .auth import Application, Receive, Scope, Send
from .weight_store import CHUNK_BYTES, RefusedError, WeightStore

PATH = "/tau2-lightning/weights"
HEADERS = [(b"content-type", b"application/json")]


class TakeWeights:
    """Answers requests below ``PATH``, one at a time; everything else goes on to vLLM."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.store = WeightStore()
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATH):
            await self.app(scope, receive, send)
            return
        status, answer = 200, dict[str, Any]()
        try:
            body = await _read(receive, _length(scope))
            async with self._lock:
                # In a thread: hashing gigabytes must not keep the server from generating.
                answer = await asyncio.to_thread(self._answer, scope, body)
        except RefusedError as refused:
            status, answer = refused.status, {"error": refused.reason}
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, IndexError) as error:
            status, answer = 400, {"error": f"cannot read the request: {error!r}"}
        await send({"type": "http.response.start", "status": status, "headers": HEADERS})
        await send({"type": "http.response.body", "body": orjson.dumps(answer)})

    def _answer(self, scope: Scope, body: bytes) -> dict[str, Any]:
        route = (scope["method"], scope["path"].removeprefix(PATH))
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


def _length(scope: Scope) -> int | None:
    """The announced length of the body."""
    text = next((value for name, value in scope["headers"] if name == b"content-length"), None)
    return None if text is None else int(text)


async def _read(receive: Receive, length: int | None) -> bytes:
    """The request's body. Raises RefusedError when it is too long, or ends before ``length``."""
    if (length or 0) > CHUNK_BYTES:
        raise RefusedError(413, f"a body has at most {CHUNK_BYTES} bytes")
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise RefusedError(400, "the body is cut short")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > CHUNK_BYTES:
            raise RefusedError(413, f"a body has at most {CHUNK_BYTES} bytes")
    if length is not None and len(body) != length:
        raise RefusedError(400, f"the body is cut short: {len(body)} of {length} bytes")
    return bytes(body)
