"""The tool-call parsers by name. To add a parser: one file in this folder and one line in ``PARSERS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .hermes import HermesParser
from .message import ToolCall
from .tools import PlainStream, ToolCallParser, ToolCallStream

#: Our parsers, made from the tokenizer. Every other name is looked up among vLLM's.
PARSERS: dict[str, Callable[[Any], ToolCallParser]] = {
    "hermes": lambda tokenizer: HermesParser(),
    "qwen3_json": lambda tokenizer: HermesParser(),  # vLLM's alias
}


class PlainParser:
    """No tool calls: the text is the content."""

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str | None, tuple[ToolCall, ...], bool]:
        """The text itself."""
        return text, (), False

    def stream(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallStream:
        """Everything is content."""
        return PlainStream()

    def structural_tag(self, functions: Sequence[Mapping[str, Any]], *, once: bool) -> None:
        """None: no call format exists that could be constrained."""


def make_tool_parser(name: str | None, tokenizer: Any) -> ToolCallParser:
    """The parser called ``name``, from ``PARSERS`` or else from vLLM; None reads no calls.

    Raises ValueError when no parser has that name or the tokenizer lacks a token of its format.
    """
    if name is None:
        return PlainParser()
    if name in PARSERS:
        return PARSERS[name](tokenizer)
    from .vllm_parsers import VLLMToolParser

    return VLLMToolParser(name, tokenizer)
