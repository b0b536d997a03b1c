"""Asks each model of the environment one short question before the run starts its engine, so that a wrong address,
name or key is found within seconds, and not after the warm start or in every episode."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tau2_lightning.blocking import blocking
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, InfrastructureFault, Violation

from .model_endpoint import ModelEndpoint
from .model_faults import cause_of
from .model_transport import openai_client, send
from .retry_after import is_refusal, status_of
from .settings import environment_settings
from .user_model import served_model, user_endpoint

LONGEST_SECONDS = 120.0
LIST_SECONDS = 10.0
QUESTION = [{"role": "user", "content": "This is a test of the connection. Answer with the word OK."}]
_WRONG_KEY = (401, 403)
_WRONG_REQUEST = (400, 404, 405, 422)


def check_models(config: RunConfig) -> None:
    """Ask the user's model and the judge's model once. A model that the run starts itself is not asked.

    Raises ConfigError for a refused key or an unknown model, and InfrastructureFault for a server that gives no answer,
    or one that is no chat completion. A server that limits its rate (429) passes, because it can be reached.
    """
    blocking(_check(config))


async def _check(config: RunConfig) -> None:
    asked: list[tuple[ModelEndpoint, Mapping[str, Any]]] = []
    for view in config.by_domain.values():
        settings = environment_settings(view.econfig)
        user, judge = settings.user, settings.judge
        if user.kind == "llm" and config.econfig.user_engine.path is None:
            if user.base_url and view.econfig.user_llm is None:
                user = replace(user, llm=await served_model(user))
            asked.append((user_endpoint(user), user.llm_args))
        if judge.llm:
            asked.append((ModelEndpoint.of("judge", judge), judge.llm_args))
    different = [one for at, one in enumerate(asked) if one not in asked[:at]]  # domains may share a model
    await asyncio.gather(*(_ask(endpoint, arguments) for endpoint, arguments in different))


async def _ask(endpoint: ModelEndpoint, arguments: Mapping[str, Any]) -> None:
    seconds = min(endpoint.deadline_s, LONGEST_SECONDS)
    try:
        async with asyncio.timeout(seconds):
            response = await send(endpoint, {"messages": QUESTION, **arguments})
    except Exception as error:  # noqa: BLE001  # whatever openai and litellm raise, the run must say it in one line
        if is_refusal(error):
            return
        found = await _violation(endpoint, error)
        if found is not None:
            raise ConfigError([found]) from None
        text = f"no answer within {seconds:g} s" if isinstance(error, TimeoutError) else _first_line(error)
        raise InfrastructureFault(endpoint.component, cause_of(error), f"{_place(endpoint)}: {text}") from None
    if not getattr(response, "choices", None):
        text = f"{_place(endpoint)} answers, but not with a chat completion: {str(response)[:100]!r}"
        raise InfrastructureFault(endpoint.component, "bad_reply", text)


async def _violation(endpoint: ModelEndpoint, error: BaseException) -> Violation | None:
    """The wrong value of the configuration that causes ``error``; None if the server is at fault."""
    status, key = status_of(error), f"econfig.{endpoint.component}_llm"
    if missing := _missing_variables(endpoint):
        problem = f"{_place(endpoint)} needs a key, and {', '.join(missing)} is not set"
        remedy = f"Set it in the environment, or give {key}_api_key"
        return Violation(f"{key}_api_key", None, problem, f"{remedy}; {key}_base_url names a server of yours")
    if status in _WRONG_KEY:
        problem = f"{_place(endpoint)} refuses this key: {_first_line(error)}"
        return Violation(f"{key}_api_key", "***" if endpoint.api_key else None, problem, "Give the server's key")
    if status in _WRONG_REQUEST:
        served = ", ".join(await _served(endpoint))
        problem = f"{_place(endpoint)} refuses a test question: {_first_line(error)}"
        remedy = f"Check the model's name, {key}_base_url (it ends with /v1) and {key}_args"
        return Violation(key, endpoint.model, problem, remedy + (f"; it serves: {served}" if served else ""))
    return None


def _missing_variables(endpoint: ModelEndpoint) -> list[str]:
    """The variables of the environment that the model's provider needs and that are not set; none for a server of the
    user's own, and where a key is given."""
    if endpoint.base_url or endpoint.api_key:
        return []
    import litellm

    found: dict[str, Any] = litellm.validate_environment(endpoint.model)
    return [] if found["keys_in_environment"] else list(found["missing_keys"])


async def _served(endpoint: ModelEndpoint) -> list[str]:
    """The names of a server's models; empty if it does not list them."""
    if not endpoint.base_url:
        return []
    try:
        client = openai_client(endpoint.base_url, endpoint.api_key)
        return [model.id async for model in client.models.list(timeout=LIST_SECONDS)]
    except Exception:  # noqa: BLE001  # the list only makes the message more helpful
        return []


def _place(endpoint: ModelEndpoint) -> str:
    return f"{endpoint.model} at {endpoint.base_url or 'its provider'}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
