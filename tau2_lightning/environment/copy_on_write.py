"""Databases that are parsed once and copied record by record, when a record is first touched.

A tau2 database is a pydantic model whose fields map ids to records. Copying airline's takes 340 ms, yet an episode
touches a handful of records. ``CowDict`` shares the records of a ``Baseline`` and copies one on first access, so an
episode starts at once and what it changed is known: two databases of one baseline are equal exactly when their
differences from it are, which is what ``fingerprint`` compares.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tau2_lightning.environment.cloning import Copier, snapshot

# Below this many records a plain copy is cheaper than bookkeeping.
MIN_RECORDS = 20
_MISSING = object()


class Baseline:
    """The pristine records of one database field. Never handed out for writing, so shared by all episodes."""

    def __init__(self, records: Mapping[str, Any]) -> None:
        self.records = dict(records)
        self._copiers: dict[str, Copier] = {}
        self._texts: dict[str, str] = {}
        self._dumps: dict[str, bytes] = {}

    def fresh(self, key: str) -> Any:
        """A private copy of one record. Several times faster than a deep copy of pydantic models."""
        copier = self._copiers.get(key)
        if copier is None:
            copier = self._copiers[key] = snapshot(self.records[key])
        return copier()

    def same(self, key: str, record: Any) -> bool:
        """Whether ``record`` surely equals the pristine one: a fast test that may say no to equal records.

        Dumps agree only if values and their types do; NaN, which would read as null, is refused at the door.
        """
        pristine = self.records.get(key)
        if type(pristine) is not type(record) or not hasattr(record, "model_dump_json"):
            return False
        if key not in self._dumps:
            self._dumps[key] = _dump(pristine)
        return _dump(record) == self._dumps[key]

    def text(self, key: str) -> str | None:
        """The record in the canonical JSON that tau2 hashes, or None when the baseline has no such record."""
        if key not in self.records:
            return None
        if key not in self._texts:
            self._texts[key] = canonical(self.records[key])
        return self._texts[key]


class Answers:
    """What a tool's result is spelled as, remembered for shared records, which tools that only read return as such."""

    def __init__(self, fields: Iterable[Baseline] = ()) -> None:
        # The baselines keep the records, so that their ids are not given to anything else.
        self._records = {id(record) for baseline in fields for record in baseline.records.values()}
        self._texts: dict[int, str] = {}

    def text(self, result: Any, spell: Callable[[Any], str]) -> str:
        """``spell(result)``."""
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


class CowDict(dict[str, Any]):
    """A dict over a baseline's records: one is copied when first reached by key, ``values()`` or ``items()``.

    Its own storage holds what this episode reached or set, and nothing else, so that a new one costs nothing and many
    at once stay small. Whatever goes through Python sees all records; what reads a dict's storage from C, as pydantic's
    serializer does, would not: ``open_database`` sees to that.

    Nothing is copied while ``lending.allowed``: airline's flight search walks all flights, and a read-only tool does
    not change them. ``Blueprint.verify_pristine`` checks that promise.
    """

    __slots__ = ("_baseline", "_gone", "_lending")

    def __init__(self, baseline: Baseline, lending: Lending) -> None:
        super().__init__()
        self._baseline, self._lending = baseline, lending
        # Keys of the baseline that were deleted, also when they were set again since: those come last, as in a dict.
        self._gone: frozenset[str] = frozenset()

    def contents(self) -> dict[str, Any]:
        """All items in order as a plain dict, records that were not reached being the shared ones. Never change it."""
        records = self._baseline.records
        if not self._gone and not super().__len__():
            return records
        kept = {key: value for key, value in records.items() if key not in self._gone} if self._gone else dict(records)
        for key in super().__iter__():
            kept[key] = super().__getitem__(key)
        return kept

    def _pristine(self, key: Any) -> bool:
        return key in self._baseline.records and key not in self._gone

    def __getitem__(self, key: str) -> Any:
        record = super().get(key, _MISSING)
        if record is not _MISSING:
            return record
        if not self._pristine(key):
            raise KeyError(key)
        if self._lending.allowed:
            return self._baseline.records[key]
        record = self._baseline.fresh(key)
        super().__setitem__(key, record)
        return record

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or self._pristine(key)

    def __len__(self) -> int:
        return len(self.contents())

    def __iter__(self) -> Iterator[str]:
        return iter(self.contents())

    def __reversed__(self) -> Iterator[str]:
        return reversed(self.contents())

    def __eq__(self, other: object) -> bool:
        return self.contents() == (other.contents() if isinstance(other, CowDict) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __repr__(self) -> str:
        return repr(self.contents())

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            return default
        return self[key]

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        super().pop(key, None)
        if key in self._baseline.records:
            self._gone |= {key}

    def pop(self, key: str, default: Any = _MISSING) -> Any:
        if key not in self and default is not _MISSING:
            return default
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        if not self:
            raise KeyError("popitem(): dictionary is empty")
        key = next(reversed(self))
        return key, self.pop(key)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> CowDict:  # type: ignore[override]
        self.update(other)
        return self

    def __or__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return self.copy() | other

    def __ror__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return other | self.copy()

    def clear(self) -> None:
        self._gone |= self._baseline.records.keys()
        super().clear()

    def keys(self) -> Any:
        return self.contents().keys()

    def values(self) -> Any:
        return self.contents().values() if self._lending.allowed else _Values(self)

    def items(self) -> Any:
        return self.contents().items() if self._lending.allowed else _Items(self)

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(dict(self.contents()), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self.contents()),)

    def changes(self) -> Iterator[tuple[str, str | None]]:
        """(key, canonical JSON) of every record that differs from the baseline; None for a deleted one."""
        for key in sorted({*super().__iter__(), *self._gone}):
            held = super().__contains__(key)
            record = super().get(key)
            if held and self._baseline.same(key, record):
                continue
            text = canonical(record) if held else None
            if text != self._baseline.text(key):
                yield key, text


class _Values:
    """Values of a CowDict, each copied as it is reached."""

    def __init__(self, source: CowDict) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        for key in list(self._source):
            yield self._source[key]

    def __len__(self) -> int:
        return len(self._source)


class _Items(_Values):
    """Items of a CowDict, each value copied as it is reached."""

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for key in list(self._source):
            yield key, self._source[key]


def _dump(record: Any) -> bytes:
    # Warnings are off: tau2's tools may leave a value of another type in a field, and that must show, not complain.
    dumped: bytes = type(record).__pydantic_serializer__.to_json(record, warnings=False)
    return dumped


def canonical(record: Any) -> str:
    """The JSON text tau2 hashes a database by: pydantic dump, keys sorted, ``str`` of what JSON does not know."""
    data = record.model_dump() if hasattr(record, "model_dump") else record
    return json.dumps(data, sort_keys=True, default=str)


def baselines(database: Any) -> dict[str, Baseline] | None:
    """One Baseline a field when every field maps ids to pydantic records and it is worth it, else None."""
    fields = {name: getattr(database, name) for name in type(database).model_fields}
    if not fields or not all(isinstance(value, dict) for value in fields.values()):
        return None
    if not all(hasattr(record, "model_copy") for value in fields.values() for record in value.values()):
        return None
    if sum(map(len, fields.values())) < MIN_RECORDS:
        return None
    return {name: Baseline(value) for name, value in fields.items()}


def open_database(cls: Any, fields: Mapping[str, Baseline], lending: Lending) -> Any:
    """A database whose fields share ``fields`` until touched: of class ``cls``, but that its dumps see every record."""
    return _shared(cls).model_construct(**{name: CowDict(baseline, lending) for name, baseline in fields.items()})


@functools.cache
def _shared(cls: Any) -> Any:
    """A subclass of a database class that spells its CowDicts out before pydantic's own code reads their storage."""

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


def fingerprint(database: Any) -> tuple[tuple[str, str, str | None], ...] | None:
    """What makes two databases of one baseline equal: (field, key, JSON) of all differences, in canonical order.

    None when the database is not copy-on-write throughout (its fields were replaced); compare hashes then.
    """
    fields = {name: getattr(database, name) for name in sorted(type(database).model_fields)}
    if not all(isinstance(value, CowDict) for value in fields.values()):
        return None
    return tuple((name, key, text) for name, value in fields.items() for key, text in value.changes())


def texts(fields: Iterable[Baseline]) -> list[list[str]]:
    """Canonical JSON of every pristine record as it is in memory now, not as it is cached."""
    return [[canonical(record) for record in baseline.records.values()] for baseline in fields]
