"""tau2's user simulator with a language model: tau2's own request, sent without blocking and retried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tau2_lightning.errors import ConfigError, InfrastructureFault, Violation

from . import tau2_api as api
from .model_client import client_for
from .model_endpoint import ModelEndpoint
from .model_faults import BadReply, cause_of
from .model_prices import cost_of
from .model_transport import openai_client
from .replies import clean, json_object
from .settings import UserSettings
from .user_thinking import split_thoughts, thoughts_in_fields
from .users import QueuedUser

#: The key of the record's ``raw_data`` that holds what the user thought. No prompt shows it.
THOUGHTS = "thoughts"


def user_endpoint(settings: UserSettings) -> ModelEndpoint:
    """The endpoint of the user's model."""
    return ModelEndpoint.of("user", settings)


class ModelBrain:
    """Asks a model for the user's next message. One object per dialogue; dialogues share the client.

    What the model thinks is split off by ``settings.reasoning_parser`` and kept in the message's ``raw_data``. Neither
    the agent nor the user's own next prompt shows it, and a stop token in it ends nothing.
    """

    def __init__(self, settings: UserSettings, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self.name = settings.name

    async def answer(self, user: QueuedUser, message: Any, state: Any) -> Any:
        """See `UserBrain.answer`."""
        seen = type(state)(system_messages=state.system_messages, messages=user.history(message, state))
        request: dict[str, Any] = {
            "messages": [_bare(item) for item in api.to_litellm_messages(seen.system_messages + seen.flip_roles())],
            **self._settings.llm_args,
        }
        if user.tools:
            request |= {"tools": [tool.openai_schema for tool in user.tools], "tool_choice": "auto"}
        client = client_for(user_endpoint(self._settings))
        return await client.ask(lambda attempt: {"seed": self._seed + attempt, **request}, self._read)

    def _read(self, response: Any) -> Any:
        """tau2's UserMessage of a chat completion. Raises BadReply."""
        if not getattr(response, "choices", None):
            raise BadReply("an answer without choices")
        answer = response.choices[0].message
        said, thought = split_thoughts(clean(answer.content or ""), self._settings.reasoning_parser)
        thought = "\n".join(filter(None, (clean(thoughts_in_fields(answer)), thought)))
        calls = [_call(call, f"call_{response.id}_{index}") for index, call in enumerate(answer.tool_calls or ())]
        if not calls and not said.strip():
            if thought:
                raise BadReply(
                    "thoughts and nothing said; raise max_tokens in econfig.user_llm_args, or turn its thinking off",
                    "only_thoughts",
                )
            raise BadReply("neither text nor tool calls")
        usage = response.usage
        tokens = {"completion_tokens": usage.completion_tokens, "prompt_tokens": usage.prompt_tokens} if usage else None
        return api.UserMessage(
            role="user",
            content=said or None,
            tool_calls=calls or None,
            cost=_cost(self._settings.llm, usage),
            usage=tokens,
            raw_data={THOUGHTS: thought} if thought else None,
        )


async def served_model(settings: UserSettings) -> str:
    """The name of the model at ``settings.base_url``, for users who configure only the address.

    Raises ConfigError when the server has several models, InfrastructureFault when it does not answer.
    """
    client = openai_client(settings.base_url, settings.api_key)
    try:
        names = [model.id async for model in client.models.list(timeout=settings.timeout_s)]
    except Exception as error:
        raise InfrastructureFault(
            "user", cause_of(error), f"asking {settings.base_url} for its model: {error}"
        ) from error
    if len(names) != 1:
        problem = f"{settings.base_url} serves {len(names)} models"
        raise ConfigError(
            [Violation("econfig.user_llm", None, problem, f"Name one: {', '.join(names) or 'none there'}")]
        )
    return names[0]


def _bare(message: Mapping[str, Any]) -> dict[str, Any]:
    """``message`` without fields that are not in OpenAI's schema: ``name`` beside a call's function, null
    ``tool_calls``."""
    out = {key: value for key, value in message.items() if key != "tool_calls"}
    if message.get("tool_calls"):
        out["tool_calls"] = [{k: call[k] for k in ("id", "type", "function")} for call in message["tool_calls"]]
    return out


def _cost(model: str, usage: Any) -> float:
    """Dollars, as tau2 counts them: 0 where the price is not known."""
    return (usage and cost_of(model, usage.prompt_tokens or 0, usage.completion_tokens or 0)) or 0.0


def _call(call: Any, without_id: str) -> Any:
    """tau2's ToolCall, with the id ``without_id`` where the server gave none. Raises BadReply."""
    name, text = call.function.name, call.function.arguments
    arguments = json_object(text or "{}")
    if not name:
        raise BadReply("a tool call without a name")
    if arguments is None:
        raise BadReply(f"tool arguments are no JSON object: {str(text)[:200]!r}")
    return api.ToolCall(id=call.id or without_id, name=clean(name), arguments=arguments, requestor="user")
