"""``tool_choice`` required / named and ``response_format`` as structured-output constraints of the engine.

Under a grammar the engine's log-probabilities are renormalised over the tokens it allows: they are not the policy's.
Recorded turns carry the grammar's name and are not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson

from tau2_lightning.rollout.chat.json_calls import MalformedCall, read_calls, skip_space
from tau2_lightning.rollout.chat.message import ParsedMessage
from tau2_lightning.rollout.chat.schemas import SchemaError, calls_schema

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
        """The answer as content, or calls from a JSON list of ``{"name", "parameters"}``; a list that cannot be read
        (truncated, for example) stays content, flagged."""
        if self.native:
            return parsed
        text = parsed.text
        answer = ParsedMessage(text or None, text=text)
        if not self.calls:
            return answer
        try:
            calls, end = read_calls(text, skip_space(text, 0), ("parameters",))
        except MalformedCall:
            return replace(answer, invalid_format=True)
        if skip_space(text, end) != len(text):
            return replace(answer, invalid_format=True)
        return replace(answer, content=None, tool_calls=tuple(calls))


class StructuralTag(Protocol):
    """``ToolCallParser.structural_tag``."""

    def __call__(self, functions: Sequence[Mapping[str, Any]], *, once: bool) -> Mapping[str, Any] | None: ...


def grammar_for(call: ChatCall, structural_tag: StructuralTag) -> Grammar | None:
    """The constraint a request asks for, or None. ``structural_tag`` is the model's tool-call parser's.

    Raises APIError 400 for two constraints together, and for a function's schema that refers to what it lacks.
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
    try:
        if tag := structural_tag(functions, once=once):
            return Grammar(name, {"structural_tag": orjson.dumps(tag).decode()})
        return Grammar(name, {"json": calls_schema(functions, once=once)}, native=False)
    except SchemaError as error:
        raise invalid(str(error), "tools") from error
