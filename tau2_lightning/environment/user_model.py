"""tau2's user simulator with a language model: tau2's own request, sent without blocking and retried."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import openai
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from tau2_lightning.errors import ConfigError, InfrastructureFault, Violation

from . import tau2_api as api
from .settings import UserSettings
from .users import QueuedUser


class _BadReply(Exception):
    """The user model's answer has no form that tau2 can use. Another try may succeed."""


class ModelBrain:
    """Asks a model for the user's next message. One object per dialogue; dialogues share connections."""

    def __init__(self, settings: UserSettings, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self.name = settings.name

    async def answer(self, user: QueuedUser, message: Any, state: Any) -> Any:
        """See `UserBrain.answer`."""
        seen = type(state)(system_messages=state.system_messages, messages=user.history(message, state))
        messages = [_bare(item) for item in api.to_litellm_messages(seen.system_messages + seen.flip_roles())]
        schemas = [tool.openai_schema for tool in user.tools] if user.tools else None
        retrying = AsyncRetrying(
            stop=stop_after_attempt(1 + self._settings.max_retries),
            wait=wait_exponential_jitter(initial=0.2, max=10.0),
            retry=retry_if_exception(_worth_retrying),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    # A repeated seed would repeat an unusable answer.
                    seed = self._seed + attempt.retry_state.attempt_number - 1
                    return _to_user_message(await self._complete(messages, schemas, seed))
        except Exception as error:
            raise InfrastructureFault("user", _cause(error), f"{self.name}: {error}") from error
        raise AssertionError("unreachable: tenacity returns or raises")

    async def _complete(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, seed: int) -> Any:
        settings = self._settings
        request: dict[str, Any] = {"messages": messages, "seed": seed, **settings.llm_args}
        if tools:
            request |= {"tools": tools, "tool_choice": "auto"}
        if settings.base_url:
            client = _client(settings.base_url, settings.api_key, settings.timeout_s, id(asyncio.get_running_loop()))
            return await client.chat.completions.create(model=settings.llm.removeprefix("openai/"), **request)
        import litellm

        key = {"api_key": settings.api_key} if settings.api_key else {}
        return await litellm.acompletion(
            model=settings.llm, timeout=settings.timeout_s, num_retries=0, caching=False, **key, **request
        )


async def served_model(settings: UserSettings) -> str:
    """The name of the model at ``settings.base_url``, for users who configure only the address.

    Raises ConfigError when the server has several models, InfrastructureFault when it does not answer.
    """
    client = _client(settings.base_url, settings.api_key, settings.timeout_s, id(asyncio.get_running_loop()))
    try:
        names = [model.id async for model in client.models.list()]
    except Exception as error:
        raise InfrastructureFault(
            "user", _cause(error), f"asking {settings.base_url} for its model: {error}"
        ) from error
    if len(names) != 1:
        problem = f"{settings.base_url} serves {len(names)} models"
        raise ConfigError(
            [Violation("econfig.user_llm", None, problem, f"Name one: {', '.join(names) or 'none there'}")]
        )
    return names[0]


@lru_cache(maxsize=8)
def _client(base_url: str, api_key: str, timeout_s: float, loop: int) -> openai.AsyncOpenAI:
    # One client per event loop: its connections belong to the loop that opened them.
    del loop
    return openai.AsyncOpenAI(base_url=base_url, api_key=api_key or "none", timeout=timeout_s, max_retries=0)


def _bare(message: Mapping[str, Any]) -> dict[str, Any]:
    """``message`` without fields that are not in OpenAI's schema: ``name`` beside a call's function, null
    ``tool_calls``."""
    out = {key: value for key, value in message.items() if key != "tool_calls"}
    if message.get("tool_calls"):
        out["tool_calls"] = [{k: call[k] for k in ("id", "type", "function")} for call in message["tool_calls"]]
    return out


def _to_user_message(response: Any) -> Any:
    answer = response.choices[0].message
    calls = []
    for call in answer.tool_calls or ():
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except json.JSONDecodeError as error:
            raise _BadReply(f"tool arguments are no JSON: {call.function.arguments!r}") from error
        if not isinstance(arguments, dict):
            raise _BadReply(f"tool arguments are no object: {call.function.arguments!r}")
        calls.append(api.ToolCall(id=call.id, name=call.function.name, arguments=arguments, requestor="user"))
    if not calls and not (answer.content or "").strip():
        raise _BadReply("neither text nor tool calls")
    usage = response.usage
    tokens = {"completion_tokens": usage.completion_tokens, "prompt_tokens": usage.prompt_tokens} if usage else None
    return api.UserMessage(
        role="user", content=answer.content, tool_calls=calls or None, cost=0.0, usage=tokens, raw_data=None
    )


def _worth_retrying(error: BaseException) -> bool:
    if isinstance(error, _BadReply):
        return True
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status in (408, 409, 425, 429) or status >= 500
    return isinstance(error, openai.APIConnectionError | ConnectionError | TimeoutError)


def _cause(error: BaseException) -> str:
    if isinstance(error, _BadReply):
        return "bad_reply"
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return "timeout"
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and not isinstance(error, openai.APIConnectionError):
        return f"http_{status}"
    if isinstance(error, openai.APIConnectionError | ConnectionError):
        return "connection"
    return type(error).__name__
