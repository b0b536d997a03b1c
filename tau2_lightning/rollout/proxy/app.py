"""The OpenAI proxy of a policy as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from fastapi.routing import APIRoute

from tau2_lightning.rollout.session.store import SessionStore

from .chat_service import ChatService
from .errors import install
from .middleware import Observe
from .routes_info import info_router
from .routes_openai import openai_router
from .routes_sessions import sessions_router

log = structlog.get_logger(__name__)


def create_app(service: ChatService) -> FastAPI:
    """The application that offers ``service`` over HTTP; while it runs, idle sessions are reaped."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reaper = asyncio.create_task(_reap(service.store, service.settings.reap_interval), name="session-reaper")
        try:
            yield
        finally:
            reaper.cancel()

    app = FastAPI(
        title="tau2_lightning proxy", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    routers = openai_router(service), sessions_router(service), info_router(service)
    paths = {route.path for router in routers for route in router.routes if isinstance(route, APIRoute)}
    plain_paths = frozenset(path for path in paths if "{" not in path)
    app.add_middleware(Observe, meter=service.meter, paths=plain_paths, refused=service.refused)
    for router in routers:
        app.include_router(router)
    install(app)
    return app


async def _reap(store: SessionStore, interval: float) -> None:
    while True:
        await asyncio.sleep(interval)
        if idle := store.reap():
            log.warning("reaped idle sessions", count=len(idle), sessions=idle[:8])
