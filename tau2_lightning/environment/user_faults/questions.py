"""The user does not answer a question that the agent has put twice."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .agent_words import questions
from .text import likeness, plain, words
from .turns import UserTurn

SAME_QUESTION = 0.5
SAME_ANSWER = 0.8
_STEM = 5

# Saying that one does not know or does not want to is an answer, and so is going to look.
_DECLINES = re.compile(
    r"\b(?:don't|do not|doesn't|didn't|can't|cannot|can not|couldn't|not sure|no idea|unsure|not certain|forgot|"
    r"forgotten|"
    r"rather not|prefer not|prefer|won't|wouldn't|haven't|without|unable|not able|lost|not comfortable|private|"
    r"no (?:i|order|email|such|account|thanks?)|none|neither|not (?:on|with|at|in|to|really)|unfortunately|"
    r"as soon as|let you know|get back to you|look (?:it|that|this|them) up|should be able to|already (?:told|gave|"
    r"said|provided|mentioned)|"
    r"(?:i'll|i will|let me|i'd have to|i need to|have to) (?:\w+ )?(?:check|look|find|get|see|try|search|think|"
    r"gather))\b"
)
_AGREES = re.compile(
    r"\b(?:yes|yeah|yep|yup|ok|okay|alright|all right|absolutely|definitely|exactly|of course|certainly|please do|"
    r"go ahead|proceed|confirm|confirmed|i do|i did|i am|i have|i would|i was|that's it|do it|agree|agreed|no|nope|nah|"
    r"(?:it|that) (?:is|was|does|did)(?= *(?:[.,!;]|$|(?:not|now|on|off|enabled|disabled|working|correct|right|fine|"
    r"still|set)\b))|(?:that|it|all|this|that's|it's|is|looks|sounds|works|seems) (?:good|great|fine|perfect|right|"
    r"correct|works|okay)|let's (?:do|go|try|proceed)|isn't|aren't|not (?:yet|really|now|at all|sure|any|needed|"
    r"necessary)|(?:did|have|has|is|am|was|do|does) not|oui|si|affirmative|y|n|understood|got it|done)\b|"
    r"^\W*(?:sure|right|correct|perfect|great|good|fine|works)\b"
)
_WH = re.compile(r"\b(?:what|which|where|when|who|whose|how|why|reason|whether)\b")
_UNCLEAR = re.compile(
    r"\b(?:what do you mean|where (?:can|do|would|is|should) (?:i|it|that)|how (?:can|do|should|would) i|which "
    r"(?:one|number|"
    r"order|account|email|id)|what (?:is|kind|number|exactly|does|do you need)|why do you|do you need|is (?:it|"
    r"that) the|"
    r"can you (?:look|find|check|use|search|explain|clarify|tell me (?:where|how|what))|could you (?:look|find|"
    r"check|use|search|"
    r"explain|clarify))\b"
)


@dataclass(frozen=True)
class _Data:
    """Something that the agent may ask for: the words of the question, and what an answer has in it.

    ``identity``: it tells who the user is or what it is about; nothing else answers the question then.
    """

    asked: re.Pattern[str]
    answer: re.Pattern[str]
    identity: bool


_NUMBER = (
    r"\d{3,}|[a-z]+_\w*\d|\b(?=[a-z0-9]*\d)[a-z0-9]{5,}\b|\b(?:reservation|confirmation|booking|id|code|"
    r"number)\b\W+(?:\w+\W+){0,2}[A-Z]{6}\b"
)
_KINDS = tuple(
    _Data(re.compile(asked), re.compile(answer), number < 5)
    for number, (asked, answer) in enumerate((
        (r"\be-?mail\b", r"\S+@\S+|\bat\b.+\bdot\b"),
        (r"\b(?:zip|postal)\b", r"\b\d{5}\b"),
        (r"\b(?:full|first|last|your) name\b|\bwho am i speaking\b", r"\bname(?:'s| is)\b|\b(?:i'm|i am|this is|"
            r"it's) [A-Z]|[A-Z][a-z]+ [A-Z][a-z]+"),
        (r"\bphone number\b|\b(?:mobile|line) number\b", r"\d{3}.?\d{4}"),
        (r"\b(?:order|user|customer|account|member|item|product|reservation|confirmation|booking|line|task)s? ?"
         r"(?:id|ids|number|numbers|code|codes|name)\b|\busername\b|\brecord locator\b", _NUMBER),
        (r"\bpayment (?:method|option)\b|\bhow would you like to pay\b|\bwhich (?:card|payment)\b",
         r"\b(?:card|credit|gift|paypal|certificates?|visa|master ?card|original|same|debit|voucher|refund)\b"),
        (r"\breason\b|\bwhy\b", r"\b(?:because|since|reason|due|changed?|plans?|longer|mistake|error|wrong|cheaper|"
            r"better|damaged|broken|"
         r"don't|sick|ill|health|emergency|cancel+ed|delayed|need|want|expensive|found|like)\b"),
        (r"\b(?:shall|should) (?:i|we)\b|\b(?:would you like|do you want) (?:me )?to\b|\bdo you (?:confirm|agree)\b|"
            r"\bproceed\b|"
         r"\bgo ahead\b|\byes\b", _AGREES.pattern),
    ))
)  # fmt: skip
_COMMON = frozenset(
    [
        "about",
        "again",
        "also",
        "and",
        "any",
        "are",
        "but",
        "can",
        "could",
        "did",
        "does",
        "for",
        "from",
        "has",
        "have",
        "her",
        "him",
        "his",
        "how",
        "into",
        "just",
        "know",
        "like",
        "need",
        "now",
        "one",
        "our",
        "please",
        "provide",
        "she",
        "should",
        "some",
        "tell",
        "than",
        "thank",
        "thanks",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "to",
        "want",
        "was",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "will",
        "with",
        "would",
        "you",
        "your",
        "yours",
        "much",
        "many",
    ]
)


def ignores_question(first: UserTurn, second: UserTurn) -> str | None:
    """The question that the agent put before both turns, and that neither answers; or None.

    ``second`` is the user's next turn after ``first``. Saying "I do not know", asking what is meant, doing
    something on the device, and insisting on what was said are answers.
    """
    if first.acted or second.acted or "###" in second.text or likeness(first.said, second.said) >= SAME_ANSWER:
        return None
    for again in questions(second.asked):
        for question in questions(first.asked):
            if _same(question, again) and not (_answers(first, question) or _answers(second, again)):
                return again
    return None


def _same(question: str, again: str) -> bool:
    both, a, b = _kinds(again) & _kinds(question), _content(question), _content(again)
    if both:
        return bool(a & b) or any(kind.identity for kind in both)
    return bool(a and b) and 2 * len(a & b) / (len(a) + len(b)) >= SAME_QUESTION


def _kinds(question: str) -> set[_Data]:
    return {kind for kind in _KINDS if kind.asked.search(question)}


def _answers(turn: UserTurn, question: str) -> bool:
    said, text = turn.said, plain(turn.said)
    if _DECLINES.search(text):
        return True
    if _UNCLEAR.search(text) and _content(question) & _content(said):
        return True
    kinds = _kinds(question)
    # Names and codes are told by their capitals.
    if any(kind.answer.search(said) or kind.answer.search(text) for kind in kinds):
        return True
    if any(kind.identity for kind in kinds):
        return bool(re.search(r"\d{4,}", text))
    # Whoever takes up anything that the agent has said is in the conversation: a bargain, another wish.
    return bool(_content(turn.asked) & _content(said)) or bool(not _WH.search(question) and _AGREES.search(text))


def _content(text: str) -> set[str]:
    return {word[:_STEM] for word in words(text) if len(word) > 2 and word not in _COMMON}
