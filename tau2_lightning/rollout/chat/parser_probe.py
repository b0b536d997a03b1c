"""Chooses the tool-call parser of a chat template: the first that reads the template's own calls back exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .message import Message, parse_arguments
from .parsers import PARSERS, make_tool_parser
from .tools import FunctionTools, ToolCallParser, read_turn
from .vllm_openings import OPENINGS

AUTO = "auto"
#: Parsers that read the same format as another one.
_ALIASES = frozenset({"qwen3_json", "llama4_json", "qwen3_xml", "glm47", "hf"})

#: Formats without an entry in OPENINGS: a text that every call contains.
_MARKS = {"muse_glimmer": "<atem:invoke"}


@dataclass(frozen=True)
class WrittenCalls:
    """A turn with calls.

    ``text`` is what the template writes for it, without reasoning and end-of-turn token; empty if the template refuses
    such a turn. ``calls`` are (name, arguments) of each call.
    """

    text: str
    calls: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, text: str, turn: Message) -> WrittenCalls:
        """``text`` is what the template writes for the assistant's message ``turn``."""
        functions = [call["function"] for call in turn["tool_calls"]]
        return cls(text, tuple((one["name"], parse_arguments(one["arguments"])) for one in functions))


@dataclass(frozen=True)
class ParserChoice:
    """``name``: the chosen parser, None if no parser reads the calls. ``parallel``: it also reads several calls of a
    turn. ``missing``: parsers of vLLM that could not be tried, because vLLM is not installed."""

    name: str | None
    parallel: bool = False
    missing: tuple[str, ...] = ()


def find_parser(tokenizer: Any, tools: FunctionTools, single: WrittenCalls, several: WrittenCalls) -> ParserChoice:
    """The first parser that reads ``single``, and also ``several`` if the template writes it; ours before vLLM's.

    A parser that reads single calls only is the second choice. vLLM is imported only if none of ours reads the calls.
    """
    if single.calls[0][0] not in single.text:
        return ParserChoice(None)
    second, missing = ParserChoice(None), []
    for name in _candidates(single.text):
        try:
            parser = make_tool_parser(name, tokenizer)
        except ValueError:  # the tokenizer lacks a token of the format
            continue
        except ImportError:
            missing.append(name)
            continue
        if not reads_back(parser, tools, single):
            continue
        if not several.text or reads_back(parser, tools, several):
            return ParserChoice(name, bool(several.text))
        if second.name is None:
            second = ParserChoice(name)
    return second if second.name else ParserChoice(None, missing=tuple(missing))


def reads_back(parser: ToolCallParser, tools: FunctionTools, written: WrittenCalls) -> bool:
    """Whether ``parser`` finds exactly the calls that were written, and no text beside them."""
    content, calls, invalid = read_turn(parser, written.text, tools)
    if invalid or (content or "").strip() or len(calls) != len(written.calls):
        return False
    try:
        found = [(call.name, json.loads(call.arguments)) for call in calls]
    except ValueError:
        return False
    return found == list(written.calls)


def _candidates(text: str) -> Iterator[str]:
    yield from (name for name in PARSERS if name not in _ALIASES)
    yield from (
        name
        for name, openings in OPENINGS.items()
        if name not in _ALIASES | PARSERS.keys() and any(opening in text for opening in openings)
    )
    yield from (name for name, mark in _MARKS.items() if mark in text)


def read_by_vllm(name: str) -> bool:
    """Whether the parser called ``name`` is vLLM's: it also says which calls are malformed."""
    return name not in PARSERS
