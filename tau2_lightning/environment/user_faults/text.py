"""Texts in the form in which they are compared."""

from __future__ import annotations

import re
from functools import lru_cache

STOP, TRANSFER, OUT_OF_SCOPE = "###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###"

_TOKENS = re.compile("|".join(map(re.escape, (STOP, TRANSFER, OUT_OF_SCOPE))))
_QUOTED = re.compile(r"\u201c[^\u201d]*\u201d|\"[^\"]*\"|\u2018[^\u2019]{12,}\u2019|(?<!\w)'[^'\n]{12,}'(?!\w)")
_SENTENCE = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)*]*\s+|\n+")
_PLAIN = str.maketrans(
    {
        "\u2019": "'",
        "\u2018": "'",
        "\u02bc": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u00a0": " ",
    }
)


def without_tokens(text: str) -> str:
    """``text`` without tau2's tokens for the end."""
    return _TOKENS.sub(" ", text).strip()


def without_quotes(text: str) -> str:
    """``text`` without what it quotes: somebody else has said that."""
    return _QUOTED.sub(" ", text)


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """``text`` in lower case, with plain apostrophes, quotation marks and dashes and without Markdown's stars."""
    return text.translate(_PLAIN).lower().replace("*", "")


@lru_cache(maxsize=4096)
def words(text: str) -> tuple[str, ...]:
    """The words of ``text`` in lower case, without punctuation."""
    return tuple(re.findall(r"[a-z0-9_@#]+(?:'[a-z]+)?", plain(text)))


def sentences(text: str) -> list[str]:
    """The sentences and lines of ``text``."""
    return [part.strip() for part in _SENTENCE.split(text) if part.strip()]


def letters(text: str) -> str:
    """Letters and digits of ``text`` in lower case: the form in which ids are compared."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def likeness(first: str, second: str) -> float:
    """How much two texts have in common, 0 to 1: twice their common words over all words (Dice), repetitions
    counted."""
    a, b = list(words(first)), list(words(second))
    if not a or not b:
        return 0.0
    common, left = 0, list(b)
    for word in a:
        if word in left:
            left.remove(word)
            common += 1
    return 2.0 * common / (len(a) + len(b))
