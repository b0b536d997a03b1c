"""The OpenAI proxy of a policy: token-exact sessions behind the interface every agent already speaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from fastapi.routing import APIRoute

from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.engine.generation import Engine
from tau2_lightning.rollout.session.store import SessionStore

from .auth import Authenticator
from .chat import ChatService
from .errors import install
from .metrics import ProxyMetrics
from .middleware import Observe
from .routes_info import info_router
from .routes_openai import openai_router
from .routes_sessions import sessions_router
from .server import ProxyServer
from .settings import ProxySettings

__all__ = ["ProxyServer", "ProxySettings", "create_app"]
log = structlog.get_logger(__name__)


def create_app(store: SessionStore, chat_format: ChatFormat, engine: Engine, settings: ProxySettings) -> FastAPI:
    """The ASGI application. ``app.state`` holds ``store``, ``service`` and ``metrics``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reaper = asyncio.create_task(_reap(store, settings.reap_interval), name="session-reaper")
        try:
            yield
        finally:
            reaper.cancel()

    app = FastAPI(
        title="tau2_lightning proxy", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    metrics = ProxyMetrics(store)
    service = ChatService(store, chat_format, engine, settings, metrics)
    auth = Authenticator(store, settings)
    openai = openai_router(service, auth)
    direct = {route.path: route.endpoint for route in openai.routes if isinstance(route, APIRoute)}
    app.add_middleware(Observe, metrics=metrics, max_concurrent=settings.max_concurrent, direct=direct)
    for router in (openai, sessions_router(service, auth), info_router(service, auth)):
        app.include_router(router)
    install(app)
    app.state.store, app.state.service, app.state.metrics = store, service, metrics
    return app


async def _reap(store: SessionStore, interval: float) -> None:
    while True:
        await asyncio.sleep(interval)
        if idle := store.reap():
            log.warning("reaped idle sessions", count=len(idle), sessions=idle[:8])
