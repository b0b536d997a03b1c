"""Tool-call parsers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tau2_lightning.rollout.chat.hermes import HERMES, HermesParser
from tau2_lightning.rollout.chat.message import ToolCall
from tau2_lightning.rollout.chat.tools import PlainStream, ToolCallParser, ToolCallStream


class PlainParser:
    """No tool calls: the text is the content."""

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str | None, tuple[ToolCall, ...], bool]:
        return text, (), False

    def stream(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallStream:
        return PlainStream()


def make_tool_parser(name: str | None, tokenizer: Any) -> ToolCallParser:
    """The parser called ``name``: ``hermes`` (and vLLM's alias ``qwen3_json``) here, others from vLLM.

    Raises ValueError when no parser has that name.
    """
    if name is None:
        return PlainParser()
    if name in HERMES:
        return HermesParser()
    from .vllm_parsers import VLLMToolParser

    return VLLMToolParser(name, tokenizer)
