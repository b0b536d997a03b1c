"""A proxy in front of a running engine, for the tests that need its clients or its records."""

from __future__ import annotations

from typing import Any

import openai

from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.proxy.app import create_app
from tau2_lightning.rollout.proxy.chat_service import ChatService
from tau2_lightning.rollout.proxy.server import ProxyServer
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionStore
from tests.e2e.reference_models import ReferenceModels


class Front:
    """Proxy, store and clients around a running engine."""

    def __init__(self, pool: EnginePool, reference: ReferenceModels, **settings: Any) -> None:
        self.store = SessionStore()
        self.format = ChatFormat.from_pretrained(reference.folders["A"])
        self.settings = ProxySettings(**{"max_new_tokens": 512, "request_timeout": 120.0, **settings})
        self.service = ChatService(self.store, self.format, pool, self.settings)
        self.server = ProxyServer(create_app(self.service))

    def client(self, key: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.server.base_url, api_key=key, max_retries=0)

    async def __aenter__(self) -> Front:
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()
