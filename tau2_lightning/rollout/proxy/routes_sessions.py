"""Sessions over HTTP: start, look, reward, end, export, abort. Starting and listing need the admin key."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from tau2_lightning.rollout.session.tree import Session

from .auth import Authenticator
from .body import read_object
from .chat import ChatService
from .errors import invalid
from .request import CHAT_FIELDS, number, refuse_unknown
from .schemas import END_DOC, REWARD_DOC, START_DOC

_START_FIELDS = {"task_id", "group_id", "metadata", "tools", "chat_template_kwargs", "sampling"}
_NOT_DEFAULTS = {"messages", "tools", "chat_template_kwargs"}


def sessions_router(service: ChatService, auth: Authenticator) -> APIRouter:
    router = APIRouter(prefix="/sessions", tags=["sessions"])
    store = service.store

    @router.post("", status_code=201, openapi_extra=START_DOC)
    async def start(request: Request) -> Response:
        """Open a session; its ``api_key`` is what the agent gets."""
        auth.admin(request)
        body = await read_object(request, service.settings)
        session = store.start(**_start_arguments(body, service))
        return _json({**_describe(session), "api_key": session.api_key}, 201)

    @router.get("")
    async def sessions(request: Request) -> Response:
        """Every open session, without its key."""
        auth.admin(request)
        return _json({"object": "list", "data": [_describe(session) for session in store.sessions()]})

    @router.get("/{session_id}")
    async def session(request: Request, session_id: str) -> Response:
        return _json(_describe(auth.owner(request, session_id)))

    @router.post("/{session_id}/reward", openapi_extra=REWARD_DOC)
    async def reward(request: Request, session_id: str) -> Response:
        """Set the final reward, or that of one turn (an index, or the id of its completion)."""
        found = auth.owner(request, session_id)
        body = await read_object(request, service.settings)
        refuse_unknown(body, {"reward", "turn"})
        _reward(service, found, body, required=True)
        return _json(_describe(found))

    @router.post("/{session_id}/end", openapi_extra=END_DOC)
    async def end(request: Request, session_id: str) -> Response:
        """Take no more requests; rewards are final. The session can be exported until it is aborted or reaped."""
        found = auth.owner(request, session_id)
        body = await read_object(request, service.settings)
        refuse_unknown(body, {"reward"})
        _reward(service, found, body, required=False)
        store.close(session_id)
        return _json(_describe(found))

    @router.get("/{session_id}/export")
    async def export(request: Request, session_id: str) -> Response:
        """One token-exact row per leaf, the main line first."""
        found = auth.owner(request, session_id)
        return _json({**_describe(found), "rows": store.export_json(session_id)})

    @router.delete("/{session_id}")
    async def abort(request: Request, session_id: str) -> Response:
        """Forget the session and cancel what it is still generating."""
        auth.owner(request, session_id)
        store.abort(session_id, "aborted over HTTP")
        return _json({"session_id": session_id, "aborted": True})

    return router


def _start_arguments(body: dict[str, Any], service: ChatService) -> dict[str, Any]:
    refuse_unknown(body, _START_FIELDS)
    for key in ("task_id", "group_id"):
        if body.get(key) is not None and not isinstance(body[key], str):
            raise invalid(f"{key} must be a string", key)
    for key in ("metadata", "chat_template_kwargs", "sampling"):
        if body.get(key) is not None and not isinstance(body[key], dict):
            raise invalid(f"{key} must be an object", key)
    refuse_unknown(body.get("sampling") or {}, CHAT_FIELDS - _NOT_DEFAULTS)
    arguments = {key: body[key] for key in _START_FIELDS if body.get(key) is not None}
    arguments["tools"] = service.resolve_tools(body.get("tools"), None)
    return arguments


def _reward(service: ChatService, session: Session, body: dict[str, Any], *, required: bool) -> None:
    if body.get("reward") is None:
        if required:
            raise invalid("reward is required", "reward")
        return
    turn = body.get("turn")
    if turn is not None and (isinstance(turn, bool) or not isinstance(turn, int | str)):
        raise invalid("turn must be an index or a completion id", "turn")
    service.store.set_reward(session.session_id, number(body, "reward", 0.0, -1e9, 1e9), turn=turn)


def _describe(session: Session) -> dict[str, Any]:
    return {
        "session_id": session.session_id,
        "task_id": session.task_id,
        "group_id": session.group_id,
        "metadata": session.metadata,
        "turns": session.turns,
        "completions": [node.completion_id for node in session.nodes],
        "branches": session.branches,
        "sampled_tokens": session.sampled_tokens,
        "in_flight": session.in_flight,
        "reward": session.final_reward,
        "closed": session.closed,
    }


def _json(value: Any, status: int = 200) -> Response:
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json")
