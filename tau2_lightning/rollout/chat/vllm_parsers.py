"""vLLM's own tool-call parsers, for the formats that ``parsers.PARSERS`` does not list. Imports vLLM when used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from .message import ParsedMessage, ToolCall
from .tools import Delta


class VLLMToolParser:
    """One of vLLM's registered parsers behind our interface. Raises ValueError when the name is unknown or the
    tokenizer lacks a token of the format.

    A call counts as invalid when the parser saw the opening of one and returned none, or returned arguments that are
    not a JSON object.
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
            self._cls(tokenizer, None)
        except RuntimeError as error:  # how vLLM reports that a token of the format is missing
            raise ValueError(f"tool_call_parser={name!r} does not fit this tokenizer: {error}") from error

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str | None, tuple[ToolCall, ...], bool]:
        """A turn's text as (content, tool calls, invalid_format)."""
        request = _request(tools)
        parser = self._cls(self._tokenizer, request.tools)
        found = parser.extract_tool_calls(text, request)
        calls = tuple(ToolCall(call.function.name, call.function.arguments) for call in found.tool_calls)
        opening = getattr(parser, "tool_call_start_token", None)
        invalid = not found.tools_called and isinstance(opening, str) and opening in text
        for call in calls:
            try:
                invalid |= not isinstance(orjson.loads(call.arguments), dict)
            except orjson.JSONDecodeError:
                invalid = True
        return found.content, calls, invalid

    def structural_tag(self, functions: Sequence[Mapping[str, Any]], *, once: bool) -> None:
        """None: vLLM's parsers have no grammar of their format."""

    def stream(self, tools: Sequence[Mapping[str, Any]]) -> VLLMToolStream:
        """A fresh incremental parser of one turn."""
        request = _request(tools)
        return VLLMToolStream(self._cls(self._tokenizer, request.tools), request, self._tokenizer)


class VLLMToolStream:
    """vLLM's incremental parsing of one turn."""

    def __init__(self, parser: Any, request: Any, tokenizer: Any) -> None:
        self._parser, self._request, self._tokenizer = parser, request, tokenizer
        self._text = ""
        self._ids: list[int] = []

    def feed(self, text: str) -> Iterator[Delta]:
        """Deltas that the next piece of text allows."""
        if not text:
            return
        ids = list(self._tokenizer.encode(text, add_special_tokens=False))
        before, before_ids = self._text, self._ids
        self._text, self._ids = before + text, before_ids + ids
        found = self._parser.extract_tool_calls_streaming(
            before, self._text, text, before_ids, self._ids, ids, self._request
        )
        if found is None:
            return
        if found.content:
            yield Delta(content=found.content)
        for call in found.tool_calls or ():
            if call.function is not None and call.function.name:
                yield Delta(call=call.index, name=call.function.name)
            if call.function is not None and call.function.arguments:
                yield Delta(call=call.index, arguments=call.function.arguments)

    def finish(self, parsed: ParsedMessage) -> Iterator[Delta]:
        """The arguments that the parser has held back."""
        rest = self._parser.get_remaining_unstreamed_args()
        if rest:
            yield Delta(call=len(self._parser.prev_tool_call_arr) - 1, arguments=rest)


def _request(tools: Sequence[Mapping[str, Any]]) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest.model_validate(
        {"model": "policy", "messages": [{"role": "user", "content": ""}], "tools": [dict(tool) for tool in tools]}
    )
