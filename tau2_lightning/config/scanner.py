"""Reading a text from left to right, with errors that point at a character."""

from __future__ import annotations

import re


class AllocationError(ValueError):
    """The allocation cannot be read or cannot run. ``position`` is the 0-based character that is wrong."""

    def __init__(self, text: str, position: int, problem: str, allowed: str) -> None:
        self.text, self.position, self.problem, self.allowed = text, position, problem, allowed
        super().__init__(
            f"allocation {text!r}, character {position + 1}: {problem}. {allowed}\n    {text}\n    {' ' * position}^"
        )


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
