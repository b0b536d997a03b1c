"""``tool_choice`` required / named and ``response_format`` as structured-output constraints of the engine.

Under a grammar the engine's log-probabilities are renormalised over the tokens it allows: they are not the policy's.
Recorded turns carry the grammar's name and are not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson

from tau2_lightning.rollout.chat.message import ParsedMessage, ToolCall
from tau2_lightning.rollout.chat.tools import parameters_of

from .calls import ChatCall
from .errors import invalid


@dataclass(frozen=True)
class Grammar:
    """``structured`` is the engine's constraint, ``name`` goes into the record. ``native``: the answer is in the
    model's own tool-call format and is parsed as usual; otherwise it is JSON that ``read`` turns into calls."""

    name: str
    structured: Mapping[str, Any]
    native: bool = True
    calls: bool = True

    def read(self, parsed: ParsedMessage) -> ParsedMessage:
        """Calls from a JSON list of ``{"name", "parameters"}``; a truncated list stays content, flagged."""
        if self.native or not self.calls:
            return parsed
        try:
            entries = orjson.loads(parsed.text)
            calls = tuple(ToolCall(entry["name"], orjson.dumps(entry["parameters"]).decode()) for entry in entries)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return replace(parsed, invalid_format=True)
        return replace(parsed, content=None, tool_calls=calls)


class StructuralTag(Protocol):
    """``ToolCallParser.structural_tag``."""

    def __call__(self, functions: Sequence[Mapping[str, Any]], *, once: bool) -> Mapping[str, Any] | None: ...


def grammar_for(call: ChatCall, structural_tag: StructuralTag) -> Grammar | None:
    """The constraint a request asks for, or None. ``structural_tag`` is the model's tool-call parser's.

    Raises APIError 400 for two constraints together.
    """
    forced = call.tool_choice.mode in ("required", "named")
    if call.response_format is not None:
        if forced:
            raise invalid("response_format and a forced tool_choice exclude each other", "response_format")
        return Grammar("response_format", call.response_format, native=False, calls=False)
    if not forced:
        return None
    named = call.tool_choice.name
    functions = [tool["function"] for tool in call.tools or () if named in (None, tool["function"]["name"])]
    once = named is not None or not call.parallel_tool_calls
    name = f"named:{named}" if named else "required"
    if tag := structural_tag(functions, once=once):
        return Grammar(name, {"structural_tag": orjson.dumps(tag).decode()})
    return Grammar(name, {"json": _json_schema(functions, once)}, native=False)


def _json_schema(functions: Sequence[Mapping[str, Any]], once: bool) -> dict[str, Any]:
    """JSON schema of a list of calls (what vLLM uses for ``required``)."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": [function["name"]]},
                "parameters": parameters_of(function),
            },
            "required": ["name", "parameters"],
        }
        for function in functions
    ]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": calls}}
    if once:
        schema["maxItems"] = 1
    return schema
