"""Finds the form of messages that a chat template takes, by rendering conversations of sentinels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product, takewhile
from typing import Literal

from . import sentinels as s
from .form import MessageForm
from .message import Message
from .template import ChatFormatError, ChatTemplate

_PLACEMENTS: tuple[Literal["as given", "missing", "first"], ...] = ("as given", "missing", "first")
_REPR = f"'{s.ARGUMENT}':"  # arguments printed by Python, not as JSON


def find_form(template: ChatTemplate) -> MessageForm:
    """The smallest change of messages with which a whole conversation with calls and results reaches the prompt.

    `probe` reports what the template loses with every form.
    """
    form = _spelling(template)
    for placement in _PLACEMENTS:
        placed = replace(form, user_turn=placement)
        of_form = template.of_form(placed)
        if takes_solo(of_form) and takes_greeting(of_form):
            return placed
    return form


def takes_solo(template: ChatTemplate) -> bool:
    """Whether a conversation without a user, and its continuation, reach the prompt."""
    text, later = rendered(template, s.SOLO), rendered(template, [*s.SOLO, s.CALL_TURN, s.RESULT_TURN])
    return s.TICKET in text and s.SYSTEM in text and s.TICKET in later


def takes_greeting(template: ChatTemplate) -> bool:
    """Whether an assistant's greeting before the user's first message is shown, as the assistant's turn."""
    text, known = rendered(template, s.GREETED), rendered(template, s.ANSWERED)
    if not all(word in text for word in (s.SYSTEM, s.GREETING, s.USER)) or s.ANSWER not in known:
        return False
    # The text before a turn ends with the header of its role, so turns of one role share the end of that text.
    greeting, answer = text[: text.index(s.GREETING)], known[: known.index(s.ANSWER)]
    user = known[: known.find(s.SECOND_USER)]
    return _common_end(greeting, answer) > _common_end(user, answer)


def rendered(template: ChatTemplate, messages: Sequence[Message]) -> str:
    """The prompt of ``messages`` with the sentinels' tools; empty if the template refuses them."""
    try:
        return template.render(messages, s.TOOLS, True, {})
    except ChatFormatError:
        return ""


def _spelling(template: ChatTemplate) -> MessageForm:
    # The conversation begins with a user message, so that a template which needs one first can show the rest.
    wanted = (s.USER, s.NAME, s.VALUE, s.RESULT, s.ANSWER, s.SECOND_USER)
    best, most = MessageForm(), -1
    for names, text_arguments, short_ids in product((False, True), repeat=3):
        form = MessageForm(short_ids=short_ids, names=names, text_arguments=text_arguments)
        text = rendered(template.of_form(form), s.WHOLE)
        found = sum(word in text for word in wanted) * 2 - (_REPR in text)
        if found > most:
            best, most = form, found
        if found == 2 * len(wanted):
            break
    return _named_if_shown(template, best)


def _named_if_shown(template: ChatTemplate, form: MessageForm) -> MessageForm:
    """``form`` with names on results where the template prints them."""
    named = replace(form, names=True)
    without, with_names = (rendered(template.of_form(one), s.CALLED) for one in (form, named))
    return named if with_names.count(s.NAME) > without.count(s.NAME) else form


def _common_end(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False)))
