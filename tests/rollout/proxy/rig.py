"""A proxy on a real port, with a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.proxy.app import create_app
from tau2_lightning.rollout.proxy.chat_service import ChatService
from tau2_lightning.rollout.proxy.server import ProxyServer
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionSettings, SessionStore
from tests.rollout.proxy.fixtures import SPECIAL, ScriptedEngine, byte_tokenizer, template

TOOLS = [
    {
        "type": "function",
        "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
    }
]
# Special tokens that the format of a parser needs.
MARKS = {
    "llama3_json": ("<|python_tag|>",),
    "llama4_json": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]", "[ARGS]"),
    "llama4_pythonic": ("<|python_start|>", "<|python_end|>"),
}
ALL_MARKS = tuple(dict.fromkeys(mark for marks in MARKS.values() for mark in marks))
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'


class Rig:
    def __init__(
        self, settings: ProxySettings, name: str = "tiny", parser: str = "hermes", *, source: str | None = None
    ) -> None:
        marks = MARKS.get(parser, ()) if source is None else ALL_MARKS
        self.tokenizer = byte_tokenizer(source or template(name), (*SPECIAL, *marks))
        self.format = ChatFormat(self.tokenizer, parser)
        self.engine = ScriptedEngine(self.tokenizer)
        self.store = SessionStore(SessionSettings(invalid_format_penalty=0.25, turn_discount=0.5))
        self.settings = settings
        self.service = ChatService(self.store, self.format, self.engine, settings)
        self.app = create_app(self.service)
        self.server = ProxyServer(self.app)

    async def post(self, key: str, body: dict[str, Any], path: str = "/chat/completions") -> httpx.Response:
        return await self.http.post(path, json=body, headers={"Authorization": f"Bearer {key}"})

    async def __aenter__(self) -> Rig:
        await self.server.start()
        self.http = httpx.AsyncClient(base_url=self.server.base_url, timeout=20)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        await self.server.stop()


async def until(done: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until ``done()``, which another task makes true."""
    async with asyncio.timeout(seconds):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
