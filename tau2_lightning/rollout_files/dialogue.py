"""The messages of an episode in one form: what the policy saw, and what else tau2 recorded of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tau2_lightning.rollout.chat.message import parse_arguments

Message = Mapping[str, Any]
_THINK = "think"


def merged(
    seen: Sequence[Message], turns: Mapping[int, int], world: Sequence[Message] = (), began: float = 0.0
) -> list[dict[str, Any]]:
    """``seen`` are the OpenAI messages of a session's main line, ``turns`` maps places in it to numbers of turns, and
    ``world`` are tau2's messages of the episode, which began at the Unix time ``began``.

    With ``world``, its messages are given, after the prompt's system messages: they also hold what the user's own tools
    answered and the faults of the user. Replies that tau2 never got, thoughts only, are put in where they were said.
    """
    if not world:
        return [_of_openai(message, turns.get(at)) for at, message in enumerate(seen)]
    out = [_of_openai(message, None) for message in seen if message.get("role") in ("system", "developer")]
    replies = [(turns[at], message) for at, message in enumerate(seen) if at in turns]
    given = sum(message.get("role") == "assistant" for at, message in enumerate(seen) if at not in turns)
    at = 0
    for message in world:
        entry = _of_tau2(message, began)
        if message.get("role") == "assistant":
            if given:
                given -= 1
            else:
                while at < len(replies) and _only_thinks(replies[at][1]) and not _same(replies[at][1], message):
                    out.append(_of_openai(replies[at][1], replies[at][0]))
                    at += 1
                if at < len(replies) and _same(replies[at][1], message):
                    entry["turn"] = replies[at][0]
                    at += 1
        out.append(entry)
    return out + [_of_openai(message, turn) for turn, message in replies[at:]]


def _of_openai(message: Message, turn: int | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": str(message.get("role")), "content": _text(message.get("content"))}
    if message.get("tool_calls"):
        entry["calls"] = [
            {
                "id": call.get("id"),
                "name": call["function"].get("name"),
                "arguments": parse_arguments(call["function"].get("arguments")),
            }
            for call in message["tool_calls"]
        ]
    if message.get("reasoning_content"):
        entry["thought"] = message["reasoning_content"]
    if message.get("tool_call_id"):
        entry["id"] = message["tool_call_id"]
    if turn is not None:
        entry["turn"] = turn
    return entry


def _of_tau2(message: Message, began: float) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": message.get("role"), "content": _text(message.get("content"))}
    if message.get("tool_calls"):
        entry["calls"] = [
            {"id": call.get("id"), "name": call.get("name"), "arguments": call.get("arguments")}
            for call in message["tool_calls"]
        ]
    if message.get("requestor") == "user" and message.get("role") == "tool":
        entry["by"] = "user"
    if message.get("id"):
        entry["id"] = message["id"]
    if message.get("error"):
        entry["error"] = True
    raw = message.get("raw_data") or {}
    if faults := raw.get("user_faults"):
        entry["faults"] = faults
    if thought := raw.get("thoughts"):
        entry["thought"] = thought
    if began and (at := _unix(message.get("timestamp"))):
        entry["at"] = round(at - began, 3)
    return entry


def _text(content: Any) -> str | None:
    """Text of an OpenAI message's content, whose parts may be mappings."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", part)) if isinstance(part, Mapping) else str(part) for part in content)
    return str(content)


def _same(reply: Message, message: Message) -> bool:
    """Whether tau2's ``message`` is the policy's ``reply``: the same calls, thoughts aside, or else the same text."""
    mine = [name for name in _names(reply) if name != _THINK]
    theirs = [call.get("name") for call in message.get("tool_calls") or ()]
    if mine or theirs:
        return mine == theirs
    return (_text(reply.get("content")) or "").strip() == (_text(message.get("content")) or "").strip()


def _only_thinks(reply: Message) -> bool:
    names = _names(reply)
    return bool(names) and set(names) == {_THINK}


def _names(reply: Message) -> list[Any]:
    return [call["function"].get("name") for call in reply.get("tool_calls") or ()]


def _unix(stamp: Any) -> float | None:
    """tau2's time stamps are local times in ISO form, sometimes without dashes."""
    try:
        return datetime.fromisoformat(str(stamp)).timestamp()
    except ValueError:
        return None
