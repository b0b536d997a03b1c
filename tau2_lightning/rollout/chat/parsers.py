"""The tool-call parsers by name. To add a parser: one file in this folder and one line in ``PARSERS``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .hermes import HermesParser
from .llama3 import Llama3Parser
from .mistral import MistralParser
from .pythonic import PythonicParser
from .tools import FunctionTools, Read, ToolCallParser
from .xml_calls import XmlParser

#: Our parsers, made from the tokenizer. Every other name is looked up among vLLM's.
PARSERS: dict[str, Callable[[Any], ToolCallParser]] = {
    "hermes": lambda tokenizer: HermesParser(),
    "qwen3_json": lambda tokenizer: HermesParser(),  # vLLM's alias
    "llama3_json": Llama3Parser,
    "llama4_json": Llama3Parser,
    "mistral": MistralParser,
    "qwen3_coder": lambda tokenizer: XmlParser(),
    "qwen3_xml": lambda tokenizer: XmlParser(),  # vLLM's alias
    "pythonic": lambda tokenizer: PythonicParser(),
    "llama4_pythonic": lambda tokenizer: PythonicParser(("<|python_start|>", "<|python_end|>")),
}


class PlainParser:
    """No tool calls: the text is the content."""

    openings = ()

    def parse(self, text: str, tools: FunctionTools) -> Read:
        """The text itself."""
        return text, (), False

    def structural_tag(self, functions: FunctionTools, *, once: bool) -> None:
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
