"""A model's chat template: whole conversations as text, and the text after an assistant's turn."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .form import MessageForm
from .message import Message, Tools

_RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {"messages"}


# What templates raise on messages that they do not support; the request is the cause.
_RAISED = (
    TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError,
    NotImplementedError,
)  # fmt: skip


class ChatFormatError(ValueError):
    """The template refuses these messages (its own ``raise_exception``) or cannot be continued from a sampled turn."""


def one_template(tokenizer: Any) -> str | None:
    """The template of a tokenizer; if it has several, the one for tools."""
    source = tokenizer.chat_template
    return source.get("tool_use") or source.get("default") if isinstance(source, Mapping) else source


class ChatTemplate:
    """Renders messages with the Jinja template ``source`` through ``tokenizer.apply_chat_template``.

    Messages are first changed as ``form`` says.
    """

    def __init__(self, tokenizer: Any, source: str, form: MessageForm | None = None) -> None:
        self._tokenizer, self.source, self.form = tokenizer, source, form or MessageForm()
        self._mark = "m" + secrets.token_hex(12)  # unguessable: no message contains it

    def of_form(self, form: MessageForm) -> ChatTemplate:
        """The same template with messages in another form."""
        return ChatTemplate(self._tokenizer, self.source, form)

    def render(self, messages: Sequence[Message], tools: Tools, prompt: bool, kwargs: Mapping[str, Any]) -> str:
        """The conversation as text; ``prompt`` appends the generation prompt. Raises ChatFormatError."""
        if reserved := _RESERVED & kwargs.keys():
            raise ChatFormatError(f"chat_template_kwargs may not contain {', '.join(sorted(reserved))}")
        try:
            text: str = self._tokenizer.apply_chat_template(
                self.form.applied(messages),
                tools=list(tools) if tools else None,
                chat_template=self.source,
                add_generation_prompt=prompt,
                tokenize=False,
                **kwargs,
            )
        except _RAISED as error:
            raise ChatFormatError(f"the chat template does not accept these messages: {error}") from error
        return text

    def tail(
        self, reply: Message, new: Sequence[Message], tools: Tools, prompt: bool, kwargs: Mapping[str, Any]
    ) -> str:
        """The template's text after the assistant's turn ``reply``, when the messages ``new`` follow it.

        A substitute for the turn, which ends with a mark, is rendered instead; the tail is the text after the mark.
        Raises ChatFormatError.
        """
        refused = None
        for stand_in in self._stand_ins(reply):
            try:
                text = self.render([{"role": "user", "content": "x"}, stand_in, *new], tools, prompt, kwargs)
            except ChatFormatError as error:
                refused = error
                continue
            _, found, tail = text.rpartition(self._mark)
            if found:
                return tail
        raise refused or ChatFormatError("the chat template leaves out the assistant's own turns")

    def _stand_ins(self, reply: Message) -> Iterator[dict[str, Any]]:
        """Messages of the reply's shape that end with the mark, most faithful first.

        Some templates do not support tool calls, or not several in a turn.
        """
        mark, calls = self._mark, reply.get("tool_calls") or ()
        if calls:
            marked = [
                {
                    "id": call.get("id", ""),
                    "type": "function",
                    "function": {"name": call["function"]["name"], "arguments": {mark: mark}},
                }
                for call in calls
            ]
            yield {"role": "assistant", "content": "", "tool_calls": marked}
            yield {"role": "assistant", "content": "", "tool_calls": marked[-1:]}
        yield {"role": "assistant", "content": mark}
