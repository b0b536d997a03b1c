"""Errors: every failure as an HTTP status and an error body in OpenAI's shape."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault, SessionError
from tau2_lightning.rollout.chat.template import ChatFormatError
from tau2_lightning.rollout.engine.generation import EngineRejected
from tau2_lightning.rollout.session.unanswered import client_left

log = structlog.get_logger(__name__)
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_SESSION_STATUS = {
    "session_not_found": 404,
    "turn_not_found": 404,
    "session_closed": 409,
    "bad_reward": 400,
    "too_many_sessions": 429,
}


class APIError(Exception):
    """A refusal or failure with its HTTP status. ``code`` is OpenAI's code where it has one, ``param`` the field at
    fault."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        self.status, self.code, self.message, self.param = status, code, message, param
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body in OpenAI's shape."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The HTTP response."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.status in (429, 503):
            headers["Retry-After"] = "1"
        return Response(orjson.dumps(self.body), self.status, headers, "application/json")


# The intended errors of a handler; any other is a defect and a 500.
KNOWN_ERRORS: tuple[type[Exception], ...] = (
    APIError,
    InfrastructureFault,
    SessionError,
    ChatFormatError,
    EngineRejected,
    ClientDisconnect,
    RecursionError,
    ExceptionGroup,
)


def invalid(message: str, param: str | None = None, code: str = "invalid_request_error") -> APIError:
    """A 400."""
    return APIError(400, code, message, param)


def as_api_error(error: Exception) -> APIError:
    """The answer for an exception that left a handler; an unknown one is a 500 and is logged."""
    match error:
        case APIError():
            return error
        case DeadlineExceeded():
            return APIError(504, _word(error.component, "timeout"), str(error))
        case InfrastructureFault():
            return APIError(503, _word(error.component, error.cause), str(error))
        case SessionError():
            return APIError(_SESSION_STATUS.get(error.code, 409), error.code, str(error))
        case ChatFormatError():
            return invalid(str(error), "messages")
        case EngineRejected():
            return invalid(str(error), code="engine_rejected")
        case ExceptionGroup():
            return as_api_error(error.exceptions[0])
        case ClientDisconnect():
            return APIError(400, "client_disconnected", "the client went away")
        case RecursionError():
            return invalid("the request is nested too deeply")
        case HTTPException():
            code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
            return APIError(error.status_code, code, str(error.detail))
    log.error("proxy failed", error=repr(error), exc_info=error)
    return APIError(500, "internal_error", "the proxy failed; its log says why")


def fault_behind(error: BaseException) -> InfrastructureFault | None:
    """Why a request got no answer, where neither the policy nor the request is the reason; None for a wrong request.

    Such reasons are every status of 500 and more, 429, 408, and a client that left or was cut off.
    """
    if isinstance(error, asyncio.CancelledError):
        return InfrastructureFault("proxy", "interrupted", "the proxy broke the request off")
    if not isinstance(error, KNOWN_ERRORS):
        return InfrastructureFault("proxy", "internal_error", repr(error))
    problem = as_api_error(error)
    if problem.code == "client_disconnected":
        return client_left()
    if problem.status >= 500 or problem.status in (408, 429):
        return InfrastructureFault.of_code(problem.code, problem.message)
    return None


def _word(*parts: str) -> str:
    return "_".join(parts).replace(" ", "_").replace(":", "_")


def install(app: FastAPI) -> None:
    """Answer every exception of ``app`` in OpenAI's shape."""

    async def answer(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    for kind in (*KNOWN_ERRORS, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
