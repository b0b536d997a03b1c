"""Databases that are parsed once and copied record by record, when a record is first touched.

A tau2 database is a pydantic model whose fields map ids to records, or list them. Copying airline's takes 340 ms, a
third of an episode of stock tau2, and an episode touches a handful of records: without copy-on-write airline could not
reach the aim of 300 times stock tau2's speed. ``CowDict`` and ``CowList`` share the records of a ``Baseline`` and copy
one on first access, so an episode starts immediately and its changes are known: two databases of one baseline are equal
exactly when their differences from it are.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from .cloning import snapshot
from .cow_dict import CowDict
from .cow_list import CowList
from .records import Baseline, Lending, canonical

# Below this many records a plain copy is cheaper than bookkeeping.
MIN_RECORDS = 20
Fingerprint = tuple[tuple[str, Any, str | None], ...]


class SharedDatabase:
    """The shared part of a database of class ``cls``: a Baseline of every field; ``lists`` names the list fields.

    Two of the same ``digest`` have equal records in equal order.
    """

    def __init__(self, cls: Any, fields: Mapping[str, Baseline], lists: frozenset[str]) -> None:
        self.cls, self.fields, self.lists = cls, dict(fields), lists
        # Dicts keep what they hold from pydantic's own code, lists do not.
        self._opened = cls if len(lists) == len(fields) else _shared(cls)
        self.digest = self.computed_digest()

    @classmethod
    def of(cls, database: Any) -> SharedDatabase | None:
        """The shared part of ``database``, which must not change any more. None unless ``database`` is a pydantic
        model, each of its fields maps ids to pydantic records or lists them, and there are at least ``MIN_RECORDS``.
        """
        fields = {name: getattr(database, name) for name in getattr(type(database), "model_fields", ())}
        if not fields or not all(type(value) in (dict, list) for value in fields.values()):
            return None
        by_key = {name: value if type(value) is dict else dict(enumerate(value)) for name, value in fields.items()}
        if not all(hasattr(record, "model_copy") for records in by_key.values() for record in records.values()):
            return None
        if sum(map(len, by_key.values())) < MIN_RECORDS:
            return None
        if not all(map(_copies, by_key.values())):
            return None
        lists = frozenset(name for name, value in fields.items() if type(value) is list)
        return cls(type(database), {name: Baseline(records) for name, records in by_key.items()}, lists)

    def open(self, lending: Lending) -> Any:
        """A database of class ``cls`` whose fields share records until they are touched. Its dumps contain all."""
        kinds = {name: CowList if name in self.lists else CowDict for name in self.fields}
        return self._opened.model_construct(**{name: kinds[name](self.fields[name], lending) for name in self.fields})

    def fingerprint(self, database: Any) -> Fingerprint:
        """(field, key, JSON) of all differences from the shared records, in canonical order.

        Equal for two databases exactly when tau2's hashes of them are; their fields may have been replaced.
        """
        found: list[tuple[str, Any, str | None]] = []
        for name, baseline in self.fields.items():
            value = getattr(database, name)
            mine = type(value) in (CowDict, CowList) and value.baseline is baseline
            changes = value.changes() if mine else self._changes(name, value)
            found += [(name, key, text) for key, text in changes]
        return tuple(found)

    def _changes(self, name: str, value: Any) -> Iterator[tuple[Any, str | None]]:
        """As ``CowDict.changes`` and ``CowList.changes``, for any other value of a field."""
        baseline = self.fields[name]
        if not isinstance(value, list if name in self.lists else dict):
            yield "", canonical(value)
            return
        held = dict(enumerate(value)) if name in self.lists else dict(value)
        for key in sorted({*held, *baseline.records}):
            if key not in held:
                yield key, None
            elif (text := baseline.difference(key, held[key])) is not None:
                yield key, text

    def computed_digest(self) -> str:
        """A digest of the shared records as they are in memory now."""
        texts = [[canonical(record) for record in baseline.records.values()] for baseline in self.fields.values()]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _copies(records: Mapping[Any, Any]) -> bool:
    """Whether the first of these records can be copied."""
    try:
        return all(snapshot(record) for record in islice(records.values(), 1))
    except (pickle.PicklingError, AttributeError, TypeError):
        return False


@functools.cache
def _shared(cls: Any) -> Any:
    """A subclass of a database class that makes its CowDicts plain before pydantic's code reads their storage."""

    def whole(database: Any) -> Any:
        held = {name: getattr(database, name) for name in cls.model_fields}
        plain = {name: dict(value.contents()) if isinstance(value, CowDict) else value for name, value in held.items()}
        return cls.model_construct(database.model_fields_set, **plain)

    def through(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(whole(self), name)(*args, **kwargs)

        return method

    def equal(self: Any, other: Any) -> Any:
        return whole(self) == (whole(other) if type(other) is type(self) else other)

    def reduced(self: Any, protocol: Any) -> Any:
        return _itself, (whole(self),)  # of the class that can be found by its name

    members: dict[str, Any] = {name: through(name) for name in ("model_dump", "model_dump_json")}
    members |= {"__reduce_ex__": reduced, "__eq__": equal, "__hash__": None}
    about = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls)(cls.__name__, (cls,), members | about)


def _itself(database: Any) -> Any:
    return database
