"""A server that stands in for the judge model of NL assertions."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.environment.local_server import running
from tests.environment.user_server import Answer, UserServer


def asked(request: dict[str, Any]) -> tuple[str, list[str]]:
    """(conversation, assertions) of a request from tau2 to its judge."""
    text = request["messages"][-1]["content"]
    found = re.search(r"conversation:\n(.*)\n\s*expectedOutcomes:\n\s*(\[.*\])\s*$", text, re.DOTALL)
    assert found is not None, text
    return found.group(1), ast.literal_eval(found.group(2))


def verdict(*met: bool) -> Answer:
    """An answer with one verdict for each assertion, in order."""
    results = [
        {"expectedOutcome": f"wanted {i}", "reasoning": "since", "metExpectation": one} for i, one in enumerate(met)
    ]
    return said(json.dumps({"results": results}))


def said(content: str) -> Answer:
    return {"message": {"role": "assistant", "content": content}}


class JudgeServer(UserServer):
    """Answers each request with the verdicts of ``holds(conversation, assertion)``."""

    def __init__(self, holds: Callable[[str, str], bool]) -> None:
        super().__init__([])
        self.holds = holds

    async def handle(self, request: web.Request) -> web.Response:
        conversation, assertions = asked(await request.json())
        self.answers.append(verdict(*[self.holds(conversation, assertion) for assertion in assertions]))
        return await super().handle(request)


@asynccontextmanager
async def judging(holds: Callable[[str, str], bool]) -> AsyncIterator[tuple[JudgeServer, str]]:
    """The server and its URL, with ``/v1``."""
    server, app = JudgeServer(holds), web.Application()
    app.router.add_post("/v1/chat/completions", server.handle)
    async with running(app) as url:
        yield server, url
