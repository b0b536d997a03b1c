r"""Lone surrogates: the one kind of text that a policy can sample and UTF-8 cannot hold.

The tokens of a turn always decode to whole characters, but JSON has escapes, and ``"\ud83d"`` is half a character. No
lone surrogate leaves this folder: U+FFFD stands in its place, as in every text decoder. So no client, log or file has
to know about them, and the recorded tokens stay as they were sampled.
"""

from __future__ import annotations

import re

# A whole pair, or a lone one (group 1), or any other escape: only so is the backslash of "\\ud83d" not taken for the
# start of an escape.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def without_surrogates(text: str) -> str:
    """``text`` with U+FFFD for each lone surrogate; two halves of one character become that character."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def json_without_surrogates(text: str) -> str:
    r"""The same for the strings inside a JSON text, where ``\ud83d`` is one, too; everything else stays as written."""
    if "\\u" in text:
        text = _ESCAPE.sub(lambda found: r"\ufffd" if found[1] else found[0], text)
    return without_surrogates(text)
