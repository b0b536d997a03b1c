"""Whether two messages are one, spelled differently.

A client's copy of a turn is seldom the JSON it got. It may give the turn a name, number its calls anew, write their
arguments in another order and spacing, drop or rename the reasoning, write null for "", split the text into parts, and
add keys that say nothing (``refusal``, ``audio``, ``annotations``). None of that is another turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tau2_lightning.rollout.chat.message import Message, parse_arguments, text_of
from tau2_lightning.rollout.chat.reasoning import split_reasoning


def same(recorded: Message, sent: Message) -> bool:
    """Whether ``sent`` is ``recorded``, possibly spelled differently."""
    return recorded == sent or canonical(recorded) == canonical(sent)


def canonical(message: Message) -> tuple[Any, ...]:
    """The parts of a message that count when two spellings of it are compared: role, text, calls, and the name of a
    speaker who is neither the policy nor a tool."""
    role, text = message.get("role"), text_of(message.get("content"))
    calls = tuple(_call(call["function"]) for call in message.get("tool_calls") or ())
    if role == "assistant":
        # Some clients put the reasoning back in front of the text.
        return role, split_reasoning(text)[1].strip(), calls, None
    return role, text, calls, message.get("name") if role != "tool" else None


def _call(function: Mapping[str, Any]) -> tuple[Any, Any]:
    return function.get("name"), _comparable(parse_arguments(function.get("arguments")))


def _comparable(value: Any) -> Any:
    """A JSON value that equals others of the same meaning: 1 is 1.0, as clients in JavaScript write it, but true is
    not 1; NaN is NaN, and numbers that differ only beyond a float's digits are the same."""
    match value:
        case bool():
            return ("bool", value)
        case int() | float():
            try:
                number = float(value)
            except OverflowError:
                return value
            return number if number == number else "NaN"
        case dict():
            return {key: _comparable(item) for key, item in value.items()}
        case list():
            return [_comparable(item) for item in value]
    return value
