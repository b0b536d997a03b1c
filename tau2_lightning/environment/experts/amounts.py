"""Amounts that a user asks for and no tool returns: sums that ``calculate`` makes of what was read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from tau2_lightning.environment.telecom_expert import Act

from .seen import Seen
from .turns import Talk

# Signed amounts, added up.
Terms = Sequence[float]
_CHAIN = re.compile(r"\s*-?\s*\d+(?:\.\d+)?(?:\s*[+-]\s*\d+(?:\.\d+)?)*\s*")
_SIGNED = re.compile(r"(-?)\s*(\d+(?:\.\d+)?)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LARGEST_SUBSET = 6


def terms_of(expression: str) -> Terms | None:
    """The amounts of ``1 + 2.5 - 3``; None for an expression with anything else in it."""
    if not _CHAIN.fullmatch(expression):
        return None
    return [float(sign + digits) for sign, digits in _SIGNED.findall(re.sub(r"\+", " ", expression))]


def written(terms: Terms) -> str:
    """``1 + 2.5 - 3`` for the amounts 1, 2.5 and -3; a sum that would be negative is written the other way round."""
    signed = list(terms) if sum(terms) >= 0 else [-term for term in terms]
    signed.sort(key=lambda term: term < 0)
    first, *others = signed
    return f"{first:.10g}" + "".join(f" {'-' if term < 0 else '+'} {abs(term):.10g}" for term in others)


def subsets(prices: Sequence[float]) -> Iterator[Terms]:
    """Every sum of at least two of ``prices``."""
    for size in range(2, min(len(prices), _LARGEST_SUBSET) + 1):
        yield from combinations(prices, size)


def work_out(facts: Iterable[str], sums: Iterable[Terms], seen: Seen) -> Talk[list[str]]:
    """Have those ``facts`` calculated that are amounts and were not read, by the first of ``sums`` that gives them.

    Returns the facts that can be told: read, or calculated.
    """
    candidates, told = list(sums), list[str]()
    for fact in facts:
        if not seen.has(fact):
            expression = _expression(fact, candidates, seen)
            if expression is None:
                continue
            yield Act("calculate", {"expression": expression})
        told.append(fact)
    return told


def _expression(fact: str, candidates: Sequence[Terms], seen: Seen) -> str | None:
    if not _NUMBER.fullmatch(fact):
        return None
    for terms in candidates:
        if terms and abs(abs(sum(terms)) - float(fact)) < 0.005 and all(seen.has(abs(term)) for term in terms):
            return written(terms)
    return None


def named(fact: str, results: Iterable[Any]) -> str:
    """``fact`` with its name in the result that holds it, ``tracking id: 746342064230``; an amount that none holds was
    worked out: ``in all: 23553``.
    """
    for result in results:
        for name, value in _leaves(result, ""):
            if fact.lower() == str(value).lower() or (_NUMBER.fullmatch(fact) and _equal(fact, value)):
                return f"{name.replace('_', ' ')}: {fact}" if name else fact
    return f"in all: {fact}" if _NUMBER.fullmatch(fact) else fact


def _equal(fact: str, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(float(fact) - value) < 1e-9


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, name)
    else:
        yield name, value
