"""Reading a text from left to right, with errors that point at a character."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong at the 0-based character ``position``, and what is allowed there."""

    position: int
    problem: str
    allowed: str


class AllocationError(ValueError):
    """The allocation cannot be read or cannot run.

    ``position`` is the 0-based character that is wrong; ``marks`` is a line with a caret below each such character.
    ``problem`` and ``allowed`` name everything that is wrong.
    """

    def __init__(self, text: str, position: int, problem: str, allowed: str, marks: str = "") -> None:
        self.text, self.position, self.problem, self.allowed = text, position, problem, allowed
        self.marks = marks or f"{' ' * position}^"
        super().__init__(
            f"allocation {text!r}, character {position + 1}: {problem}. {allowed}\n    {text}\n    {self.marks}"
        )

    @classmethod
    def of(cls, text: str, faults: Sequence[Fault]) -> AllocationError:
        """One error for all ``faults``, which must not be empty."""
        places = {fault.position for fault in faults}
        marks = "".join("^" if place in places else " " for place in range(max(places) + 1))
        allowed = ". ".join(dict.fromkeys(fault.allowed for fault in faults))
        return cls(text, min(places), "; ".join(fault.problem for fault in faults), allowed, marks)


class Scanner:
    """One text and the place of the next character, ``at``."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def fail(self, problem: str, allowed: str, position: int | None = None) -> AllocationError:
        """The error at ``position``, or at the next character."""
        return AllocationError(self.text, self.at if position is None else position, problem, allowed)

    def match(self, pattern: str) -> str:
        """Read what ``pattern`` matches here; empty where it does not match."""
        found = re.compile(pattern).match(self.text, self.at)
        self.at += len(found.group()) if found else 0
        return found.group() if found else ""

    def here(self) -> str:
        """The next character, for an error text."""
        return repr(self.text[self.at]) if self.at < len(self.text) else "the end"

    @property
    def ended(self) -> bool:
        return self.at >= len(self.text)
