"""What a chat template does with a whole conversation: what is lost, what is changed, and what is rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import sentinels as s
from .form import OPENER, MessageForm
from .form_probe import rendered, takes_greeting, takes_solo
from .format import ChatFormat
from .message import Message
from .parser_probe import ParserChoice, reads_back
from .template import ChatFormatError, ChatTemplate

#: (a part of a request in words, a conversation that has it, the sentinels that must be in the prompt).
_SAID: tuple[tuple[str, Sequence[Message], dict[str, str]], ...] = (
    ("the system text", s.OPENING, {"": s.SYSTEM}),
    ("the user's text", s.OPENING, {"": s.USER}),
    (
        "tools",
        s.OPENING,
        {
            "name": s.NAME,
            "description": s.DESCRIPTION,
            "arguments": s.ARGUMENT,
            "descriptions of arguments": s.ARGUMENT_HELP,
        },
    ),
    ("an assistant's text", s.ANSWERED, {"": s.ANSWER}),
    ("a second user message", s.ANSWERED, {"": s.SECOND_USER}),
    ("results of calls", s.CALLED, {"": s.RESULT}),
)


@dataclass(frozen=True)
class TemplateReport:
    """The findings about a chat template.

    ``lost``: the parts of a request that do not reach the prompt, in words; empty for a template that can be used.
    ``form``: how messages are changed for it. ``choice``: the parser for its calls; no parser is tried if something is
    lost. ``written``: an example of a call, as the template writes it. ``rewrites``: the turns that a rendering of the
    longer conversation changes, compared with the sampled tokens; empty for a template that only appends.
    """

    lost: tuple[str, ...]
    form: MessageForm
    choice: ParserChoice
    written: str
    rewrites: tuple[str, ...]

    def changes(self) -> list[str]:
        """How messages are changed for the template, in words."""
        form, words = self.form, []
        if form.user_turn != "as given":
            when = "has no user message" if form.user_turn == "missing" else "does not begin with a user message"
            words.append(f"a conversation that {when} gets one: the ticket, else {OPENER!r}")
        if form.short_ids:
            words.append("call ids have nine letters and digits")
        if form.names:
            words.append("results carry the name of their function")
        if form.text_arguments:
            words.append("arguments are given as JSON text")
        if self.choice.name and not self.choice.parallel:
            words.append("the template writes one call per turn; further calls are kept as they were sampled")
        return words


def examine(chat_format: ChatFormat, **template_kwargs: Any) -> TemplateReport:
    """Probe the template of ``chat_format``. ``template_kwargs`` are the template's arguments in every request.

    Takes about 50 ms, and some seconds more if a parser of vLLM must be tried. Raises ChatFormatError if no token ends
    a turn: each would go on to ``gconfig.max_new_tokens``.
    """
    if not chat_format.stop_token_ids:
        where = "the tokenizer has no eos_token, generation_config.json no eos_token_id, and the template writes none"
        raise ChatFormatError(f"no token ends a turn ({where})")
    written, lost = chat_format.written_calls(), tuple(_lost(chat_format))
    return TemplateReport(
        lost=lost,
        form=chat_format.form,
        choice=ParserChoice(None) if lost else chat_format.parser_choice(),
        written=written[0].text,
        rewrites=tuple(_rewrites(chat_format, template_kwargs)),
    )


def reads_own_calls(chat_format: ChatFormat) -> bool:
    """Whether the parser of ``chat_format`` reads the calls that its template writes."""
    single, _ = chat_format.written_calls()
    return bool(single.text) and reads_back(chat_format.tool_parser, s.TOOLS, single)


def _lost(chat_format: ChatFormat) -> Iterator[str]:
    template = chat_format.template
    if (refusal := _refusal(template)) is not None:
        yield refusal
        return
    for what, messages, words in _SAID:
        text = rendered(template, messages)
        missing = [part for part, word in words.items() if word not in text]
        if missing:
            yield what + (f" ({', '.join(missing)})" if any(missing) else "")
    several = rendered(template, s.PARALLEL)
    if several and not all(word in several for word in (s.VALUE, s.SECOND_VALUE, s.RESULT, s.SECOND_RESULT)):
        yield "parallel calls and their results"
    if not takes_solo(template):
        yield "a ticket in a conversation without a user message"
    if not takes_greeting(template):
        yield "a greeting of the assistant before the first user message"
    yield from _cannot_go_on(chat_format)


def _refusal(template: ChatTemplate) -> str | None:
    """The template's own error for the plainest conversation; None if it accepts that."""
    try:
        template.render(s.OPENING, s.TOOLS, True, {})
    except ChatFormatError as error:
        return f"{'the system text' if rendered(template, [s.USER_TURN]) else 'the whole conversation'} ({error})"
    return None


def _cannot_go_on(chat_format: ChatFormat) -> Iterator[str]:
    """The kinds of messages that cannot be appended to a sampled turn."""
    for what, reply, new, word in (
        ("results after a sampled call", s.CALL_TURN, [s.RESULT_TURN], s.RESULT),
        ("results after two sampled calls", s.PARALLEL_TURN, [s.RESULT_TURN, s.SECOND_RESULT_TURN], s.SECOND_RESULT),
        ("a user message after a sampled turn", s.ANSWER_TURN, [s.SECOND_USER_TURN], s.SECOND_USER),
    ):
        try:
            text = chat_format.decode(chat_format.render_delta(reply, new, ended=False, tools=s.TOOLS))
        except ChatFormatError:
            text = ""
        if word not in text:
            yield what


def _rewrites(chat_format: ChatFormat, kwargs: dict[str, Any]) -> Iterator[str]:
    """The kinds of turns that are rendered differently when other messages follow them."""
    thinking = {"reasoning_content": s.REASONING}
    pairs: list[tuple[str, Message, list[Message]]] = [
        ("calls without reasoning", s.CALL_TURN, [s.RESULT_TURN]),
        ("texts without reasoning", s.ANSWER_TURN, [s.SECOND_USER_TURN]),
    ]
    if chat_format.marks is not None:
        pairs += [
            ("reasoning before a result", {**s.CALL_TURN, **thinking}, [s.RESULT_TURN]),
            ("reasoning before a user's message", {**s.ANSWER_TURN, **thinking}, [s.SECOND_USER_TURN]),
        ]
    for what, reply, new in pairs:
        if not chat_format.keeps(s.OPENING, reply, new, s.TOOLS, **kwargs):
            yield what
