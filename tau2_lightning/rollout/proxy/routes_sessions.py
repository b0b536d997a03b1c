"""Sessions over HTTP: start, look, reward, end, export, abort. Starting and listing need the admin key."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from tau2_lightning.rollout.session.tree import Session

from .body import read_object
from .chat_service import ChatService
from .checks import checked, refuse_unknown
from .openapi import END_DOC, REWARD_DOC, START_DOC
from .wire import ChatOptions, EndRequest, RewardRequest, StartRequest


def sessions_router(service: ChatService) -> APIRouter:
    """Routes for programs that start or use sessions."""
    router = APIRouter(prefix="/sessions", tags=["sessions"])
    store, auth = service.store, service.auth

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
        """The session's state."""
        return _json(_describe(auth.owner(request, session_id)))

    @router.post("/{session_id}/reward", openapi_extra=REWARD_DOC)
    async def reward(request: Request, session_id: str) -> Response:
        """Set the final reward, or that of one turn (an index, or the id of its completion)."""
        found = auth.owner(request, session_id)
        body = await read_object(request, service.settings)
        given = checked(body, RewardRequest)
        store.set_reward(session_id, given.reward, turn=given.turn)
        return _json(_describe(found))

    @router.post("/{session_id}/end", openapi_extra=END_DOC)
    async def end(request: Request, session_id: str) -> Response:
        """Take no more requests; rewards are final. The session can be exported until it is aborted or reaped."""
        found = auth.owner(request, session_id)
        body = await read_object(request, service.settings)
        given = checked(body, EndRequest)
        if given.reward is not None:
            store.set_reward(session_id, given.reward)
        store.close(session_id)
        return _json(_describe(found))

    @router.get("/{session_id}/export")
    async def export(request: Request, session_id: str) -> Response:
        """One token-exact row per leaf, the main line first."""
        found = auth.owner(request, session_id)
        return _json({**_describe(found), "rows": store.export_json(session_id)})

    @router.delete("/{session_id}")
    async def abort(request: Request, session_id: str) -> Response:
        """Remove the session and cancel its running generations."""
        auth.owner(request, session_id)
        store.abort(session_id, "aborted over HTTP")
        return _json({"session_id": session_id, "aborted": True})

    return router


def _start_arguments(body: dict[str, Any], service: ChatService) -> dict[str, Any]:
    checked(body, StartRequest)
    refuse_unknown(body.get("sampling") or {}, ChatOptions)
    arguments = {key: body[key] for key in StartRequest.__struct_fields__ if body.get(key) is not None}
    if tools := arguments.pop("tools", None):
        arguments["tools"], _ = service.prompts.shared_tools(tools)
    return arguments


def _describe(session: Session) -> dict[str, Any]:
    return {
        "session_id": session.session_id,
        "task_id": session.task_id,
        "group_id": session.group_id,
        "metadata": session.metadata,
        "turns": session.turns,
        "completions": session.completions,
        "branches": session.branches,
        "sampled_tokens": session.sampled_tokens,
        "in_flight": session.in_flight,
        "reward": session.final_reward,
        "closed": session.closed,
    }


def _json(value: Any, status: int = 200) -> Response:
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json")
