"""Lone surrogates in texts and in JSON are replaced, and everything else stays unchanged."""

from __future__ import annotations

import json
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.rollout.chat.surrogates import json_without_surrogates, without_surrogates

# Characters of every category; lone surrogates (Cs) are as frequent as all others together.
chars = st.one_of(st.characters(), st.characters(categories=["Cs"]), st.sampled_from('\\"u/d8b\ud83d\ude00'))
texts = st.lists(chars, max_size=12).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def paired(text: str) -> str:
    """The expected result: a high and a low surrogate in sequence become one character, any other becomes U+FFFD."""
    out, at = [], 0
    while at < len(text):
        high, low = text[at], text[at + 1 : at + 2]
        if "\ud800" <= high <= "\udbff" and "\udc00" <= low <= "\udfff":
            out.append(chr(0x10000 + ((ord(high) & 0x3FF) << 10) + (ord(low) & 0x3FF)))
            at += 2
            continue
        out.append("\ufffd" if "\ud800" <= high <= "\udfff" else high)
        at += 1
    return "".join(out)


def mended(value: Any) -> Any:
    if isinstance(value, str):
        return paired(value)
    if isinstance(value, list):
        return [mended(item) for item in value]
    if isinstance(value, dict):
        return {paired(key): mended(item) for key, item in value.items()}
    return value


@given(text=texts)
@settings(max_examples=500, deadline=None)
def test_any_text_can_be_encoded(text: str) -> None:
    out = without_surrogates(text)
    assert out == paired(text)
    assert orjson.loads(orjson.dumps(out)) == out


@given(value=values, ascii_only=st.booleans())
@settings(max_examples=500, deadline=None)
def test_json_keeps_its_meaning(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    out = json_without_surrogates(text)
    assert json.loads(out) == mended(json.loads(text))
    assert orjson.dumps(out)
    if mended(value) == value:
        assert out == text


def test_a_backslash_is_not_the_start_of_an_escape() -> None:
    assert json_without_surrogates(r'"\\ud83d \ud83d \\\ud83d \n"') == r'"\\ud83d \ufffd \\\ufffd \n"'
