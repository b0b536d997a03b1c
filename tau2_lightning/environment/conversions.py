"""Messages between OpenAI's form, which the agent speaks, and tau2's."""

from __future__ import annotations

from typing import Any

from . import tau2_api as api
from .replies import Call


def to_tau2(content: str, calls: tuple[Call, ...], thoughts: str | None = None) -> Any:
    """tau2's message of an agent's turn. ``thoughts`` are kept where tau2 keeps those of its own agents, which nobody
    in the episode sees."""
    tau2_calls = [api.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in calls]
    raw = {"message": {"reasoning_content": thoughts}} if thoughts else None
    return api.AssistantMessage(
        role="assistant", content=content or None, tool_calls=tau2_calls or None, cost=0.0, raw_data=raw
    )


def to_openai(message: Any) -> dict[str, Any]:
    """tau2's own conversion, without the ``name`` beside a call's function, which is not in OpenAI's schema."""
    entry = dict(api.to_litellm_messages([message])[0])
    calls = entry.pop("tool_calls", None)
    if calls:
        entry["tool_calls"] = [{"id": c["id"], "type": "function", "function": c["function"]} for c in calls]
    return entry


def tool_result(call_id: str, content: str | None) -> dict[str, Any]:
    """The OpenAI message that answers one tool call."""
    return {"role": "tool", "content": content, "tool_call_id": call_id}
