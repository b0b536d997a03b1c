"""``/v1/models``, ``/health`` and ``/metrics``."""

from __future__ import annotations

import time
from typing import Any, Protocol, runtime_checkable

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from .chat_service import ChatService
from .errors import APIError


@runtime_checkable
class ReportsHealth(Protocol):
    """An engine that reports which of its servers answer."""

    async def health(self) -> dict[str, bool]:
        """Whether each server answers, by its name."""
        ...


def info_router(service: ChatService) -> APIRouter:
    """Routes about the proxy itself."""
    router = APIRouter()
    created = int(time.time())
    name = service.settings.model_name

    def card() -> dict[str, Any]:
        length = service.engine.max_model_len
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "tau2_lightning",
            "max_model_len": length,
        }

    @router.get("/v1/models", tags=["openai"])
    async def models(request: Request) -> Response:
        """The policy, under its only name here."""
        service.auth.caller(request)
        return JSONResponse({"object": "list", "data": [card()]})

    @router.get("/v1/models/{model}", tags=["openai"])
    async def model(request: Request, model: str) -> Response:
        """The policy, if ``model`` is its name."""
        service.auth.caller(request)
        if model != name:
            raise APIError(404, "model_not_found", f"no model {model[:64]!r}; the policy is called {name!r}", "model")
        return JSONResponse(card())

    @router.get("/health", tags=["operator"])
    async def health() -> Response:
        """200 while at least one engine answers, else 503. Open without a key, so it shows nothing else."""
        engine = service.engine
        states = await engine.health() if isinstance(engine, ReportsHealth) else {"engine": True}
        alive = any(states.values())
        return JSONResponse({"status": "ok" if alive else "engine_down"}, 200 if alive else 503)

    @router.get("/metrics", tags=["operator"])
    async def metrics(request: Request) -> Response:
        """Prometheus text format; needs the admin key."""
        service.auth.admin(request)
        return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})

    return router
