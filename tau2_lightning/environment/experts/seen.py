"""What an agent has been told or has read, and whether the arguments of a call come from there.

A value counts as seen when it stands in the policy, in a user's message or in a tool's result. Beyond that, an argument
may be

- a value that the tool's schema lists (an ``enum``), or nothing at all (an empty second line of an address);
- a number that equals one that was seen (348 for "348.0"), or a whole number below ten, which counts something;
- a date that was said as month and day, in the year of the policy, or the day before or after a date that was seen;
- the abbreviation of a state of the USA that was named;
- a sum for ``calculate`` whose numbers were all seen;
- a summary in free words, in which only what has a digit must have been seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])")
_ISO = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAY = re.compile(rf"\b({'|'.join(_MONTHS)})[a-z]*\.? (\d{{1,2}})(?:st|nd|rd|th)?\b")
_WITH_DIGIT = re.compile(r"\S*\d[\w.-]*")
# Calls that an agent asks the user to make, as the scripted user reads them.
_REQUEST = re.compile(r"\b([a-z_]+)\((\{.*?\})\)")
_COUNTS_BELOW = 10
_STATES = (
    "al alabama,ak alaska,az arizona,ar arkansas,ca california,co colorado,ct connecticut,de delaware,fl florida,"
    "ga georgia,hi hawaii,id idaho,il illinois,in indiana,ia iowa,ks kansas,ky kentucky,la louisiana,me maine,"
    "md maryland,ma massachusetts,mi michigan,mn minnesota,ms mississippi,mo missouri,mt montana,ne nebraska,nv nevada,"
    "nh new hampshire,nj new jersey,nm new mexico,ny new york,nc north carolina,nd north dakota,oh ohio,ok oklahoma,"
    "or oregon,pa pennsylvania,ri rhode island,sc south carolina,sd south dakota,tn tennessee,tx texas,ut utah,"
    "vt vermont,va virginia,wa washington,wv west virginia,wi wisconsin,wy wyoming"
)
STATES = dict(entry.split(" ", 1) for entry in _STATES.split(","))


class Seen:
    """The texts that an agent has seen. ``policy`` and ``tools`` (OpenAI schemas) are seen from the beginning."""

    def __init__(self, policy: str, tools: Sequence[Mapping[str, Any]]) -> None:
        self._listed = {str(value).lower() for schema in tools for value in _enums(schema)}
        self._text = ""
        self._numbers: set[float] = set()
        self._dates: set[str] = set()
        self._year = found.group(1) if (found := _ISO.search(policy)) else ""
        self.add(policy)

    def add(self, text: str) -> None:
        """Take note of a message or a result."""
        text = text.lower()
        self._text += "\n" + text
        self._numbers |= {float(number.replace(",", "")) for number in _NUMBER.findall(text)}
        dates = {"-".join(parts) for parts in _ISO.findall(text)}
        if self._year:
            dates |= {f"{self._year}-{_MONTHS.index(m) + 1:02}-{int(d):02}" for m, d in _DAY.findall(text)}
        self._dates |= dates

    def has(self, value: Any) -> bool:
        """Whether ``value``, no list and no mapping, was seen; see the module."""
        if value is None or isinstance(value, bool) or value == "":
            return True
        if isinstance(value, int | float):
            return float(value) in self._numbers or (float(value).is_integer() and 0 <= value < _COUNTS_BELOW)
        text = str(value).lower()
        if text in self._listed or re.search(rf"(?<![a-z0-9]){re.escape(text)}(?![a-z0-9])", self._text):
            return True
        if _ISO.fullmatch(text):
            return any(day in self._dates for day in _around(text))
        if _NUMBER.fullmatch(text):
            return self.has(float(text.replace(",", "")))
        return text in STATES and STATES[text] in self._text

    def missing(self, arguments: Mapping[str, Any]) -> list[str]:
        """The names of the arguments that nobody has mentioned, with what they hold: ``zip='10001'``."""
        return [f"{path}={value!r}" for path, value in _leaves(arguments) if not self._may_hold(path, value)]

    def _may_hold(self, path: str, value: Any) -> bool:
        if path == "expression":
            return all(self.has(float(number)) for number in re.findall(r"\d+(?:\.\d+)?", str(value)))
        if path == "summary":
            return all(self.has(word.strip(".,;:()'\"#")) for word in _WITH_DIGIT.findall(str(value)))
        return self.has(value)


def unfounded(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], policy: str) -> list[str]:
    """The arguments of calls in an OpenAI dialogue that nobody had mentioned before: ``tool.argument='value'``.

    Calls that the agent asks the user to make, ``tool({"argument": ...})``, count as its own.
    """
    seen, found = Seen(policy, tools), list[str]()
    for message in messages:
        text = message.get("content") or ""
        if message["role"] == "assistant":
            calls = [
                (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()
            ]
            for name, arguments in [*calls, *_REQUEST.findall(text)]:
                found += [f"{name}.{missing}" for missing in seen.missing(json.loads(arguments))]
        elif message["role"] in ("user", "tool"):
            seen.add(text)
    return found


def _enums(schema: Any) -> Iterator[Any]:
    if isinstance(schema, Mapping):
        listed = schema.get("enum")
        if isinstance(listed, list):
            yield from listed
        for value in schema.values():
            yield from _enums(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _enums(value)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, path)
    else:
        yield path, value


def _around(day: str) -> list[str]:
    try:
        middle = date.fromisoformat(day)
    except ValueError:
        return []
    return [(middle + timedelta(days=shift)).isoformat() for shift in (-1, 0, 1)]
