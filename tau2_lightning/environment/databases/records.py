"""The records of databases that are parsed once: their copies, their texts, and the conditions of sharing them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

from .cloning import Copier, snapshot

_MISSING = object()


class Baseline:
    """The pristine records of one database field by key, or by position in a list. All episodes share them; they must
    not be changed.
    """

    def __init__(self, records: Mapping[Any, Any]) -> None:
        self.records = dict(records)
        self._copiers: dict[Any, Copier] = {}
        self._texts: dict[Any, str] = {}
        self._dumps: dict[Any, bytes] = {}

    @cached_property
    def key_of(self) -> dict[int, Any]:
        """The key of a pristine record by the record's ``id``, which is unique while the records exist."""
        return {id(record): key for key, record in self.records.items()}

    def fresh(self, key: Any) -> Any:
        """A private copy of one record, several times faster than a deep copy of pydantic models."""
        copier = self._copiers.get(key)
        if copier is None:
            copier = self._copiers[key] = snapshot(self.records[key])
        return copier()

    def same(self, key: Any, record: Any) -> bool:
        """Whether tau2 certainly hashes ``record`` as the pristine one. A fast test, which may be False for equal ones.

        Dumps distinguish 1 from True and 1.0; equality distinguishes a date from the text that it is dumped as. NaN,
        which would be dumped as null, never reaches a database: `replies` refuses it.
        """
        pristine = self.records.get(key)
        if type(pristine) is not type(record) or not hasattr(record, "model_dump_json") or record != pristine:
            return False
        if key not in self._dumps:
            self._dumps[key] = _dump(pristine)
        return _dump(record) == self._dumps[key]

    def text(self, key: Any) -> str | None:
        """The record in the canonical JSON that tau2 hashes, or None when the baseline has no such record."""
        if key not in self.records:
            return None
        if key not in self._texts:
            self._texts[key] = canonical(self.records[key])
        return self._texts[key]

    def difference(self, key: Any, record: Any) -> str | None:
        """The canonical JSON of a record that is held under ``key``, or None when the pristine one's is the same."""
        if record is self.records.get(key, _MISSING) or self.same(key, record):
            return None
        text = canonical(record)
        return None if text == self.text(key) else text


class Answers:
    """The JSON text of tools' results, cached for shared records, which read-only tools return uncopied."""

    def __init__(self, fields: Iterable[Baseline] = ()) -> None:
        # The baselines keep the records alive, so their ids stay unique.
        self._records = {id(record) for baseline in fields for record in baseline.records.values()}
        self._texts: dict[int, str] = {}

    def text(self, result: Any, spell: Callable[[Any], str]) -> str:
        """``spell(result)``, computed once for a shared record."""
        key = id(result)
        if key not in self._records:
            return spell(result)
        if key not in self._texts:
            self._texts[key] = spell(result)
        return self._texts[key]


class Lending:
    """Whether records may be shared uncopied: true only while a tool runs that tau2 declares read-only."""

    __slots__ = ("allowed",)

    def __init__(self) -> None:
        self.allowed = False


def _dump(record: Any) -> bytes:
    # Without warnings: tau2's tools may leave a value of another type in a field, which the dump must show.
    dumped: bytes = type(record).__pydantic_serializer__.to_json(record, warnings=False)
    return dumped


def canonical(record: Any) -> str:
    """The JSON text that tau2 hashes: pydantic dump, keys sorted, ``str`` of what JSON cannot express."""
    data = record.model_dump() if hasattr(record, "model_dump") else record
    return json.dumps(data, sort_keys=True, default=str)
