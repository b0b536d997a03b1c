"""The user does not answer a question that the agent has put twice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from .agent_words import questions
from .scenario import Scenario
from .text import likeness, plain, sentences, words
from .turns import UserTurn

# So many words in common make two of the agent's texts one matter, or a turn part of the scenario.
SHARED_WORDS = 2
SAME_ANSWER = 0.8
_STEM = 5

# Saying that one does not know or does not want to is an answer, and so is going to look.
_DECLINES = re.compile(
    r"\b(?:don't|do not|doesn't|didn't|can't|cannot|can not|couldn't|not sure|no idea|unsure|not certain|forgot|"
    r"forgotten|"
    r"rather not|prefer not|(?:'d|would) (?:rather|prefer)|won't|wouldn't|haven't|without|unable|not able|lost|"
    r"not comfortable|private|the one (?:on|in) (?:my|the|your|file)|on file|"
    r"no (?:i|order|email|such|account|thanks?)|none|neither|not (?:on|with|at|in|to|really)|unfortunately|"
    r"as soon as|let you know|get back to you|look (?:it|that|this|them) up|should be able to|already (?:told|gave|"
    r"said|provided|mentioned)|"
    r"(?:i'll|i will|let me|i'd have to|i need to|have to) (?:\w+ )?(?:check|look|find|get|see|try|search|think|"
    r"gather))\b"
)
_AGREES = re.compile(
    r"\b(?:yes|yeah|yep|yup|ok|okay|alright|all right|absolutely|definitely|exactly|of course|certainly|please do|"
    r"go ahead|proceed|confirm|confirmed|"
    r"i (?:do|did|am|have|would|was|will)(?= *(?:[.,!;]|$|(?:not|already|indeed)\b))|that's it|do it|agree|agreed|"
    r"no|nope|nah|"
    r"(?:it|that) (?:is|was|does|did)(?= *(?:[.,!;]|$|(?:not|now|on|off|enabled|disabled|working|correct|right|fine|"
    r"still|set)\b))|(?:that|it|all|this|that's|it's|is|looks|sounds|works|seems) (?:good|great|fine|perfect|right|"
    r"correct|works|okay)|let's (?:do|go|try|proceed)|"
    r"(?:isn't|aren't)(?! (?:it|they|that|he|she|we|you)\b)|not (?:yet|really|now|at all|sure|any|needed|"
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
        (r"\bhow (?:many|much)\b", r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|"
            r"both|all|none|no|single|couple|few|several)\b"),
        (r"\bdates?\b|\bwhen\b|\bwhat (?:time|day)\b", r"\d|\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?|"
            r"today|tomorrow|tonight|morning|noon|evening|"
            r"night|week|weekend|month|year|(?:jan|febr)uary|march|april|june|july|august|(?:septem|octo|novem|"
            r"decem)ber|"
            r"earliest|soon|flexible|now)\b"),
    ))
)  # fmt: skip
# Words that any two texts may share.
_COMMON = frozenset(
    words(
        "about again also always and another any anything are been being but can could did does even ever "
        "every everything for from get gets getting good got had has have her here him his how into just know "
        "like made make many may might more much must need never new now off old one only other our out "
        "please provide really same say see she should some someone something still take tell than thank "
        "thanks that the their them then there these they thing things this those to too very want was well "
        "were what when where which who will with would yet you your yours"
    )
)
# A bare answer: "Navy blue, please", "The second one". Who speaks of people makes a sentence.
_POLITE = re.compile(r"\b(?:please|thanks|thank you|sorry|well|hm+|um|uh|oh|ah|wow|lol|ha(?:ha)*|hi|hello)\b")
_SENTENCE = re.compile(
    r"\b(?:i|i'm|i've|i'd|me|my|mine|we|us|our|you|your|he|him|his|she|her|they|them|their|who|what|how|why)\b"
)
_LONGEST_FRAGMENT = 4
# "Kids grow up fast, don't they?" denies nothing.
_TAG = re.compile(
    r",? ?\b(?:do|does|did|is|are|was|were|have|has|had|ca|could|wo|would|should)n't (?:i|you|he|she|it|"
    r"we|they)\?"
)
# "Are you ...?" and "I am ..."; as a short answer, "I am" needs no question of its form.
_FORMS = (
    (re.compile(r"\b(?:are|were) you\b"), re.compile(r"\bi(?:'m| am| was)\b(?! \w+ing\b)|\bwe(?:'re| are| were)\b")),
    (re.compile(r"\b(?:do|did) you\b"), re.compile(r"\b(?:i|we) (?:do|did)\b")),
    (re.compile(r"\bdo you have\b"), re.compile(r"\b(?:i|we)(?:'ve| have)\b")),
    (re.compile(r"\b(?:would|could|can) you\b"), re.compile(r"\b(?:i|we)(?:'d| would| could| can)\b")),
)


def ignores_question(first: UserTurn, second: UserTurn, scenario: Scenario) -> str | None:
    """The question that the agent put before both turns, and that neither answers; or None.

    ``second`` is the user's next turn after ``first``. The question may be put in other words, about the same matter.
    Saying "I do not know", asking what is meant, doing something on the device, insisting on what was said, and
    speaking of what the agent has said or of what the scenario tells are answers.
    """
    if first.acted or second.acted or "###" in second.text or likeness(first.said, second.said) >= SAME_ANSWER:
        return None
    for again in questions(second.asked):
        for question in questions(first.asked):
            if not _same(first.asked, question, second.asked, again):
                continue
            if not (_answers(first, question, scenario) or _answers(second, again, scenario)):
                return again
    return None


def _same(asked: str, question: str, asked_again: str, again: str) -> bool:
    a, b = _content(question), _content(again)
    if any(kind.identity for kind in _kinds(question) & _kinds(again)):
        return True
    shared = _content(asked) & _content(asked_again)
    if len(shared) >= SHARED_WORDS and shared & a and shared & b:
        return True
    return 2 * len(a & b) > min(len(a), len(b)) > 0


def _kinds(question: str) -> set[_Data]:
    return {kind for kind in _KINDS if kind.asked.search(question)}


def _answers(turn: UserTurn, question: str, scenario: Scenario) -> bool:
    said, text = turn.said, _TAG.sub("?", plain(turn.said))
    if _DECLINES.search(text):
        return True
    if _UNCLEAR.search(text) and _content(question) & _content(said):
        return True
    kinds = _kinds(question)
    # Names and codes are told by their capitals.
    told = " ".join(part for part in sentences(text) if "?" not in part)
    if any(kind.answer.search(said if kind.identity else told) or kind.answer.search(told) for kind in kinds):
        return True
    # Whoever takes up what the agent has said, or what the scenario tells, is in the conversation: a bargain, another
    # wish. That is no answer to "who are you?"; a question about it is one.
    joins = bool(_content(turn.asked) & _content(said)) or (
        len(_content(said) & _matters(scenario.instructions)) >= SHARED_WORDS
    )
    if any(kind.identity for kind in kinds):
        return bool(re.search(r"\d{4,}", text)) or (joins and "?" in text)
    if ("?" not in question or _WH.search(question) or " or " in question) and _fragment(text):
        return True
    return joins or bool(not _WH.search(question) and _agrees(text, question))


def _agrees(text: str, question: str) -> bool:
    return bool(_AGREES.search(text)) or any(asked.search(question) and said.search(text) for asked, said in _FORMS)


def _fragment(text: str) -> bool:
    left = _POLITE.sub(" ", text)
    short = len(words(left)) <= 2 or len(_content(left)) <= 1
    return 0 < len(words(left)) <= _LONGEST_FRAGMENT and short and not _SENTENCE.search(left)


def _content(text: str) -> set[str]:
    return {
        word[:_STEM]
        for word in words(text)
        if (len(word) > 2 or word.isdigit()) and "'" not in word and word not in _COMMON
    }


@lru_cache(maxsize=256)
def _matters(instructions: str) -> frozenset[str]:
    """What a scenario is about."""
    return frozenset(_content(instructions))
