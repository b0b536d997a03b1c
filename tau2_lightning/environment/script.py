"""What the scripted user answers when the agent asks: who it is, why, how it pays, what else it wants, and yes.

Every answer is read out of the task's own instructions, put into the first person. A question is a text with a question
mark and words of one of the topics below; the first topic that fits is answered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_TOKEN = re.compile(r"###[A-Z-]+###")
YES = "Yes, please go ahead."


@dataclass(frozen=True)
class _Topic:
    """``asked`` finds the question, ``about`` the sentences that answer it; without any, ``otherwise`` is said."""

    asked: re.Pattern[str]
    about: re.Pattern[str]
    otherwise: str


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_CONFIRM = _words(r"\byes/no\b|\byes or no\b|\bdo you confirm\b|\b(?:shall|should) i (?:go ahead|proceed)\b")
_WHO = _words(
    r"\bwho (?:am i|is)\b|\byour (?:full |first )?name\b|\be-?mail\b|\bzip\b|\buser id\b|\bphone number\b"
    r"|\bdate of birth\b"
)
_ELSE = _words(r"\banything else\b|\bmore details\b|\bwhich\b|\bwhat exactly\b|\bprefer\b|\bhow many\b")
_TOPICS = (
    _Topic(
        _words(r"\breason\b|\bwhy\b"),
        _words(r"\breason\b|\bmistake\b|\bno longer\b|\bsick\b|\bunwell\b|\bemergency\b"),
        "My plans have changed, I no longer need it.",
    ),
    _Topic(_words(r"\bhow much data\b"), _words(r"\brefuel"), "I do not need more data."),
    _Topic(
        _words(r"\bpay\b|\bpayment\b|\bcard\b|\brefund\b"),
        _words(r"\bpay(?:ing|ment)?\b|\bcards?\b|\bgift ?card\b|\bgc\b|\bpaypal\b|\brefund|\bcertificates?\b"),
        "The one that I paid with, please, if that is possible.",
    ),
)
# Ordered: "you are" must be found before "you".
_PERSONS = (
    (r"you are|you're", "I am"),
    (r"you were", "I was"),
    (r"yourself", "myself"),
    (r"yours", "mine"),
    (r"your|you(?= name\b)", "my"),
    (r"(?<=\bto )you|(?<=\bfor )you|(?<=\bwith )you|(?<=\basks )you|(?<=\btells )you|(?<=\bgives )you", "me"),
    (r"you", "I"),
)
_FIRST = [(_words(rf"\b(?:{second})\b"), first) for second, first in _PERSONS]


class Script:
    """The answers of one task. ``instructions`` are tau2's: a text, which answers nothing, or its parts."""

    def __init__(self, instructions: Any) -> None:
        parts = None if isinstance(instructions, str) else instructions
        self._who = _sentences(parts, "known_info", "unknown_info")
        self._wishes = _sentences(parts, "task_instructions")
        self._all = [*_sentences(parts, "reason_for_call"), *self._wishes, *self._who]

    def answer(self, text: str, said: Iterable[str]) -> str | None:
        """What the user answers to the agent's ``text``, or None if that is no question it knows. ``said``: the user's
        messages so far; wishes that it has told already are not told again.
        """
        if "?" not in text or not self._all:
            return None
        if _CONFIRM.search(text):
            return YES
        if _WHO.search(text):
            return " ".join(self._who) or None
        for topic in _TOPICS:
            if topic.asked.search(text):
                return " ".join(one for one in self._all if topic.about.search(one)) or topic.otherwise
        if _ELSE.search(text):
            before = " ".join(said)
            return " ".join(one for one in self._wishes if one not in before) or "No, that is all."
        return None


def _sentences(parts: Any, *fields: str) -> list[str]:
    texts = [_TOKEN.sub("", getattr(parts, field, None) or "") for field in fields]
    found = [sentence.strip() for text in texts for sentence in _SENTENCE.split(text)]
    return [in_first_person(sentence) for sentence in found if re.search(r"\w", sentence)]


def in_first_person(text: str) -> str:
    """``text``, which speaks to the user, as the user says it."""
    for second, first in _FIRST:
        text = second.sub(partial(_like, first), text)
    return text


def _like(word: str, found: re.Match[str]) -> str:
    """``word``, with a capital where what was found has one."""
    return word[0].upper() + word[1:] if found.group()[0].isupper() else word
