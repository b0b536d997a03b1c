"""The pages that people read, their commands and their examples in Python."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The lab names the revision that its commands need.
TRUE_NOW = [page for page in PAGES if page.parent.name != "lab"]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


@dataclass(frozen=True)
class Shown:
    """A command of a page: its first line, and its words without comments and assignments of the environment."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fences(text: str, language: str) -> Iterator[tuple[int, str]]:
    """The code blocks of a language: the line of the first line of code, and the code."""
    for found in _FENCE.finditer(text):
        if found[1] == language:
            yield text.count("\n", 0, found.start(2)) + 1, found[2]


def commands_of(text: str, page: str = "page.md") -> Iterator[Shown]:
    """The commands in the ``bash`` blocks of a page. ``&&`` and ``;`` separate commands, a backslash joins lines."""
    for line, block in fences(text, "bash"):
        number, rest = line, block
        while rest:
            whole = re.match(r"(?:.*\\\n)*.*(?:\n|\Z)", rest)
            assert whole is not None
            yield from _commands(whole[0].replace("\\\n", " "), page, number)
            number += whole[0].count("\n")
            rest = rest[whole.end() :]


def _commands(line: str, page: str, number: int) -> Iterator[Shown]:
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word in ("&&", ";"):
            while words and re.match(r"[A-Z][A-Z0-9_]*=", words[0]):  # an assignment of the environment
                words.pop(0)
            if words:
                yield Shown(page, number, tuple(words))
            words = []
        else:
            words.append(word)


def commands() -> list[Shown]:
    """Every command of every page that is true of the present code."""
    return [one for page in TRUE_NOW for one in commands_of(page.read_text(), name_of(page))]


def examples(page: str) -> list[str]:
    """The Python of a page that a comment before it says to be executed."""
    text = (ROOT / page).read_text()
    marked = re.compile(r"<!-- executed by ([\w/.]+) -->\n```python\n(.*?)^```", re.M | re.S)
    found = [(test, code) for test, code in marked.findall(text)]
    assert all((ROOT / test).is_file() for test, _ in found)
    return [code for _, code in found]
