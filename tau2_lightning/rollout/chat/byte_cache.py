"""A cache that is bounded in bytes: clients decide how large an entry is, so a number of entries is no bound.

A tool output of 67 kB took 415 KiB in a cache of token lists, and 8192 entries were allowed: 3.3 GiB.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import orjson
from cachetools import LRUCache

V = TypeVar("V")
# What an entry takes beside its value: the entry of the dictionary, its key and the headers of the objects.
ENTRY_BYTES = 256


class ByteCache(Generic[V]):
    """Values by key, the least recently used dropped first. ``held`` (bytes) never exceeds ``limit``.

    A value that takes more than ``limit`` on its own is not kept.
    """

    def __init__(self, limit: int) -> None:
        self._entries: LRUCache[Hashable, tuple[V, int]] = LRUCache(limit, getsizeof=lambda entry: entry[1])

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def held(self) -> int:
        """The bytes of all entries."""
        return int(self._entries.currsize)

    def get(self, key: Hashable) -> V | None:
        """The value of ``key``, or None."""
        found = self._entries.get(key)
        return None if found is None else found[0]

    def put(self, key: Hashable, value: V, size: int) -> None:
        """Keep ``value``, which takes ``size`` bytes."""
        with suppress(ValueError):  # larger than the limit
            self._entries[key] = (value, size + ENTRY_BYTES)


class TokenCache:
    """Token ids by key in a ByteCache, as four bytes each: a list of them takes forty."""

    def __init__(self, limit: int) -> None:
        self.cache: ByteCache[array[int]] = ByteCache(limit)

    def get(self, key: Hashable) -> list[int] | None:
        """A new list, or None."""
        found = self.cache.get(key)
        return None if found is None else found.tolist()

    def put(self, key: Hashable, token_ids: Sequence[int]) -> None:
        """Keep ``token_ids``."""
        kept = array("i", token_ids)
        self.cache.put(key, kept, len(kept) * kept.itemsize)


def digest(value: Any) -> bytes:
    """Sixteen bytes in the place of a key of any length. Raises TypeError for what JSON cannot hold, such as half a
    surrogate pair."""
    return blake2b(orjson.dumps(value), digest_size=16).digest()


def text_digest(text: str) -> bytes:
    """`digest` of any text."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
