"""vLLM's own parsers, for the formats of tool calls and thoughts that are not read here. Imports vLLM when used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .message import ToolCall
from .tools import FunctionTools, Read
from .vllm_openings import MARKED_UP, openings_of


class VLLMToolParser:
    """One of vLLM's registered parsers with this project's interface.

    Raises ValueError when the name is unknown, the tokenizer lacks a token of the format, or vLLM reads the format
    outside its parsers only. Calls are read as in vLLM, with its weaknesses: some of its parsers end a call at a
    closing tag inside an argument. `vllm_openings` decides whether a turn is malformed.
    """

    def __init__(self, name: str, tokenizer: Any) -> None:
        from vllm.tool_parsers import ToolParserManager

        try:
            self._cls = ToolParserManager.get_tool_parser(name)
        except KeyError as error:
            known = ", ".join(sorted(ToolParserManager.list_registered()))
            raise ValueError(f"tool_call_parser={name!r} is not one of vLLM's parsers: {known}") from error
        self._tokenizer = tokenizer
        try:
            parser = self._cls(tokenizer, None)
            parser.extract_tool_calls("", _request([]))
        except RuntimeError as error:  # how vLLM reports that a token of the format is missing, or a mere stub
            raise ValueError(f"tool_call_parser={name!r} does not fit this tokenizer: {error}") from error
        self._marks = openings_of(name, parser)
        self.openings = ("",) if name in MARKED_UP or not self._marks else self._marks

    def parse(self, text: str, tools: FunctionTools) -> Read:
        """A turn's text as (content, tool calls, invalid_format)."""
        request = _request(tools)
        try:
            found = self._cls(self._tokenizer, request.tools).extract_tool_calls(text, request)
        except Exception:  # noqa: BLE001  # whatever their parser raises, the sampled text is the cause
            return text, (), any(mark in text for mark in self._marks)
        calls = tuple(ToolCall(call.function.name or "", call.function.arguments or "") for call in found.tool_calls)
        if any(_count(mark, text, calls) > len(calls) for mark in self._marks):
            return text, (), True
        if not calls:
            return found.content, (), False
        starts = [at for mark in self._marks if (at := text.find(mark)) >= 0]
        content = text[: min(starts)] if starts else found.content
        return content or None, calls, False

    def structural_tag(self, functions: FunctionTools, *, once: bool) -> None:
        """None: vLLM's parsers have no grammar of their format."""


def _count(mark: str, text: str, calls: tuple[ToolCall, ...]) -> int:
    return text.count(mark) - sum(call.arguments.count(mark) for call in calls)


def _request(tools: FunctionTools) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    offered = [dict(tool) for tool in tools] or None
    return ChatCompletionRequest.model_validate(
        {"model": "policy", "messages": [{"role": "user", "content": ""}], "tools": offered}
    )


def reasoning_marks(name: str, tokenizer: Any, *, known: Iterable[str]) -> tuple[str, str]:
    """The opening and closing mark of vLLM's reasoning parser ``name``.

    Raises ValueError for another name (the message lists the ``known`` names and vLLM's), for a tokenizer without the
    marks, and for a format that vLLM reads without marks.
    """
    try:
        from vllm.reasoning import ReasoningParserManager as Parsers
    except ImportError:
        raise ValueError(f"reasoning_parser={name!r}: use auto, null or one of {', '.join(known)}") from None
    if name not in Parsers.list_registered():
        names = ", ".join(sorted({*known, *Parsers.list_registered()}))
        raise ValueError(f"reasoning_parser={name!r}: use auto, null or one of {names}")
    try:
        parser = Parsers.get_reasoning_parser(name)(tokenizer)
    except (RuntimeError, ValueError) as error:  # how vLLM reports that a token of the format is missing
        raise ValueError(f"reasoning_parser={name!r} does not fit this tokenizer: {error}") from error
    opening, closing = parser.reasoning_start_str, parser.reasoning_end_str
    if not opening or not closing:
        raise ValueError(f"reasoning_parser={name!r}: vLLM reads this format without marks, so nothing is split off")
    return opening, closing
