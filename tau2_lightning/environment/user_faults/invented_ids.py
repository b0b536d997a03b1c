"""The user invents an id: a number, code, address or user name that nobody has told it."""

from __future__ import annotations

import re

from .scenario import Scenario
from .text import letters
from .turns import UserTurn

_SHAPES = [
    r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+",  # email
    r"#\s?[A-Za-z]?-?\d{3,}",  # order
    r"\b[A-Za-z]{2,}(?:_[A-Za-z0-9]+)*_\d+\b",  # user id, payment method, task
    r"\b[A-Za-z]{1,3}-?\d{3,}[A-Za-z]?\b",  # order, flight, customer, line
    r"(?<![\w$.,-])\+?\(?\d{3}\)?[\s.-]\d{3}[\s.-]\d{4}\b",  # phone
    r"(?<![\w$.,:/-])\d{5,}(?![\w/:-]|[.,]\d|\s?(?i:%|usd|dollars?|mbps|gb|mb|kb|mah|points|miles|steps|rpm|hours|"
    r"minutes))",
    r"\b(?=[A-Z0-9]*\d)(?=[A-Z0-9]*[A-Z])[A-Z0-9]{6,8}\b",  # reservation
]
_ID = re.compile("|".join(f"(?:{shape})" for shape in _SHAPES))
# A code of letters alone is one only where it is called one; shouting is no code.
_CODE = re.compile(
    r"\b(?:reservation|confirmation|booking|record locator|locator|code|id|number)\b(?:\s+\w+){0,3}?\W+(?:is\s+|"
    r"it's\s+)?"
    r"[\"'*]*([A-Z]{6})\b"
)
# The end of a card's number; it may look like a year.
_LAST_FOUR = re.compile(
    r"\b(?:ending (?:in|with)|ends (?:in|with)|last four(?: digits)?(?: are| is)?):? (\d{4})\b", re.IGNORECASE
)
_UNITS = re.compile(
    r"^(?:gb|mb|usb|mp|px|hz|ghz|mah|mbps|rtx|gtx|i|ipx|ip|lte|ddr|v|q|no|room|apt|suite|unit|us|gate|seat)-?\d",
    re.IGNORECASE,
)
_YEAR = re.compile(r"#?(?:19|20)\d\d")


def invents_ids(turn: UserTurn, scenario: Scenario) -> str | None:
    """An id that neither the scenario, nor the agent, nor a tool has told the user, or None.

    Spelling does not matter: case, ``#``, spaces, dashes and underscores are left out of the comparison, and a part of
    a known id is known.
    """
    if scenario.allows_false_ids:
        return None
    for found in _candidates(turn.said):
        id_ = letters(found)
        if id_ not in scenario.known_letters and id_ not in turn.seen:
            return found
    return None


def _candidates(text: str) -> list[str]:
    found = [match.group().strip() for match in _ID.finditer(text)]
    codes = [match.group(1) for match in _CODE.finditer(text)]
    ends = _LAST_FOUR.findall(text)
    return [id_ for id_ in found if not _UNITS.match(id_) and not _YEAR.fullmatch(id_)] + codes + ends
