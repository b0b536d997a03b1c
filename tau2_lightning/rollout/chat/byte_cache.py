"""A cache that is bounded in bytes: clients decide how large an entry is, so a number of entries is no bound.

A tool output of 67 kB took 415 KiB in a cache of token lists, and 8192 entries were allowed: 3.3 GiB.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import orjson

V = TypeVar("V")
# What an entry takes beside its value: the entry of the dictionary, its key and the headers of the objects.
ENTRY_BYTES = 256


class ByteCache(Generic[V]):
    """Values by key, the least recently used dropped first. ``held`` (bytes) never exceeds ``limit``.

    A value that takes more than ``limit`` on its own is not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._entries: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> V | None:
        """The value of ``key``, or None."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: V, size: int) -> None:
        """Keep ``value``, which takes ``size`` bytes."""
        size += ENTRY_BYTES
        if size > self.limit:
            return
        if key in self._entries:
            self.held -= self._entries.pop(key)[1]
        self._entries[key] = (value, size)
        self.held += size
        while self.held > self.limit:
            _, (_, freed) = self._entries.popitem(last=False)
            self.held -= freed


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
