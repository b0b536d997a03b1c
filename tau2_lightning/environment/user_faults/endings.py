"""The user ends the dialogue without its condition: stops while something is open, or as if it had been transferred.

Whether the user's goal is reached cannot be read off a text. What can be read off is that it is open: the agent has not
done anything yet, waits for an answer that the user does not give, or has just announced what it is about to do.
"""

from __future__ import annotations

import re

from .agent_words import announces_transfer, announces_work, offers_more, questions, says_farewell
from .scenario import Scenario
from .text import OUT_OF_SCOPE, STOP, TRANSFER, plain
from .turns import UserTurn

# The user gives its wish up, or takes care of it otherwise: it may stop then.
_WITHDRAWS = re.compile(
    r"\bnever ?mind\b|\bforget (?:it|about it)\b|\bno,? (?:thanks?|thank you|that's|that is|i|it's|there|nothing|"
    r"not)\b|^no\b|"
    r"\bnot (?:right )?now\b|\b(?:i'll|i will|i'd rather|i would rather|let me)\b[^.?!]{0,40}\b(?:think|call back|"
    r"get back|"
    r"come back|try|reach out|contact|look|keep|leave|stick|hold off|pass|wait|go elsewhere|take my business|find|"
    r"handle|do it)\b|"
    r"\b(?:don't|do not|won't|will not|didn't) (?:want|need|wish|think|bother|accept|proceed)\b|\bthat(?:'s| is| "
    r"will be|'ll be) "
    r"(?:all|it|everything)\b|\bi give up\b|\bi(?:'m| am) (?:done|all set|good)\b|\bthanks? (?:you )?anyway\b|"
    r"\binstead\b|"
    r"\b(?:this|it) is(?:n't| not) (?:working|helping|acceptable)\b|\bgoodbye\b|\bbye\b|\bno longer\b|\bdecided "
    r"(?:not|against)\b|"
    r"\b(?:works|working|fixed|resolved|solved|excellent|restored|back to normal)\b"
)


def stops_early(turn: UserTurn, scenario: Scenario) -> str | None:
    """Why the user may not stop yet, or None."""
    if STOP not in turn.text and OUT_OF_SCOPE not in turn.text:
        return None
    token = STOP if STOP in turn.text else OUT_OF_SCOPE
    if len(turn.heard) < 2 and not says_farewell(turn.asked):
        return f"{token} before the agent has answered anything"
    open_questions, said = questions(turn.asked), plain(turn.said)
    if token == OUT_OF_SCOPE:
        if not open_questions:
            return f"{token} though the agent asks nothing"
        known = next((fact for fact, found in _asked_facts(open_questions) if found.search(scenario.facts)), None)
        return f"{token} though the scenario holds the {known}" if known else None
    if says_farewell(turn.asked) or (said and _WITHDRAWS.search(said)):
        return None
    if open_questions and not (offers_more(turn.asked) and "?" not in turn.asked):
        return f"{token} while the agent waits for an answer: {open_questions[-1]}"
    if announces_work(turn.asked):
        return f"{token} while the agent is at work: {plain(turn.asked)[-80:]}"
    return None


def transfers_early(turn: UserTurn) -> str | None:
    """Why the user has not been transferred, or None."""
    if TRANSFER not in turn.text or turn.transferred or any(map(announces_transfer, turn.heard)):
        return None
    return f"{TRANSFER} though the agent has not transferred the user"


# What an agent asks for, and how the scenario writes it down.
_FACTS = {
    "user id": (r"\b(?:user|customer) ?(?:id|name)|\busername\b", r"\b[a-z]+_[a-z]+_\d+"),
    "email": (r"\be-?mail\b", r"\S+@\S+"),
    "phone number": (r"\bphone number\b", r"\b\d{3}-\d{3}-\d{4}\b"),
    "order number": (r"\border (?:number|id)\b", r"#?W\d{7}"),
    "zip code": (r"\bzip\b|\bpostal code\b", r"\b\d{5}\b"),
    "reservation": (
        r"\breservation (?:id|number|code)\b|\bconfirmation (?:number|code)\b",
        r"\b(?=[A-Z0-9]*\d)[A-Z0-9]{6}\b",
    ),
    "name": (r"\b(?:full|your|first|last) name\b", r"\b(?:[Yy]ou are|[Yy]ou(?:r)? name is) [A-Z][a-z]+ [A-Z][a-z]+"),
}


def _asked_facts(asked: tuple[str, ...]) -> list[tuple[str, re.Pattern[str]]]:
    text = " ".join(asked)
    return [(fact, re.compile(shape)) for fact, (words, shape) in _FACTS.items() if re.search(words, text)]
