"""vLLM's own tool-call parsers, for formats other than hermes. The only parser module that imports vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .chat_parsers import ToolCall


class VLLMToolParser:
    """One of vLLM's registered parsers behind our interface. Raises ValueError when the name is unknown.

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

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str | None, tuple[ToolCall, ...], bool]:
        import orjson
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        request = ChatCompletionRequest.model_validate(
            {"model": "policy", "messages": [{"role": "user", "content": ""}], "tools": [dict(t) for t in tools]}
        )
        parser = self._cls(self._tokenizer, request.tools)
        found = parser.extract_tool_calls(text, request)
        calls = tuple(ToolCall(call.function.name, call.function.arguments) for call in found.tool_calls)
        opening = getattr(parser, "tool_call_start_token", None)
        invalid = not found.tools_called and bool(opening) and opening in text
        for call in calls:
            try:
                invalid |= not isinstance(orjson.loads(call.arguments), dict)
            except orjson.JSONDecodeError:
                invalid = True
        return found.content, calls, invalid
