"""The cache that is bounded in bytes: it holds what it says, drops the oldest, and keeps nothing that is too large."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tau2_lightning.rollout.chat.byte_cache import ENTRY_BYTES, ByteCache, TokenCache, digest, text_digest


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 400)), max_size=60), st.integers(0, 3000))
def test_it_never_holds_more_than_its_limit(entries: list[tuple[int, int]], limit: int) -> None:
    cache: ByteCache[int] = ByteCache(limit)
    known: dict[int, int] = {}
    for key, size in entries:
        cache.put(key, size, size)
        known[key] = size
        assert cache.held <= limit
        kept = [one for one in known if cache.get(one) is not None]
        assert len(kept) == len(cache)
        assert cache.held == sum((cache.get(one) or 0) + ENTRY_BYTES for one in kept)


def test_the_least_recently_used_is_dropped_first() -> None:
    cache: ByteCache[str] = ByteCache(3 * ENTRY_BYTES)
    for key in "abc":
        cache.put(key, key, 0)
    assert cache.get("a") == "a"
    cache.put("d", "d", 0)
    assert [cache.get(key) for key in "abcd"] == ["a", None, "c", "d"]


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache: ByteCache[str] = ByteCache(1000)
    cache.put("small", "x", 1)
    cache.put("large", "y", 1000)
    assert cache.get("large") is None and cache.get("small") == "x"


def test_tokens_come_back_as_new_lists() -> None:
    cache = TokenCache(10_000)
    cache.put("k", [1, 2**31 - 1])
    first = cache.get("k")
    assert first == [1, 2**31 - 1] and first is not cache.get("k") and cache.get("other") is None
    assert cache.cache.held == ENTRY_BYTES + 8


def test_digests_tell_texts_apart() -> None:
    assert len(digest({"a": "x" * 10**6})) == len(text_digest("x" * 10**6)) == 16
    assert digest([1, "a"]) != digest([1, "b"]) and text_digest("a") != text_digest("b")
    assert text_digest("\ud83d") != text_digest("?")
    with pytest.raises(TypeError):
        digest("\ud83d")
