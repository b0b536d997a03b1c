"""A dict of records that are copied one by one, when they are first reached."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from .records import Baseline, Lending

_MISSING = object()


class CowDict(dict[str, Any]):
    """A dict over a baseline's records: a record is copied when first reached by key, ``values()`` or ``items()``.

    Its own storage holds only what this episode reached or set, so a new one costs nothing and many simultaneous ones
    stay small. Python code sees all records. C code that reads a dict's storage, such as pydantic's serializer, would
    not; the databases of ``SharedDatabase.open`` take care of that.

    Nothing is copied while ``lending.allowed``: airline's flight search walks all flights, and a read-only tool does
    not change them. ``Blueprint.verify_pristine`` checks that.
    """

    __slots__ = ("_gone", "_lending", "baseline")

    def __init__(self, baseline: Baseline, lending: Lending) -> None:
        super().__init__()
        self.baseline, self._lending = baseline, lending
        # Keys of the baseline that were deleted, even if they were set again later: those come last, as in a dict.
        self._gone: frozenset[str] = frozenset()

    def contents(self) -> dict[str, Any]:
        """All items in order as a plain dict, with the shared records where none was reached. Never change it."""
        records = self.baseline.records
        if not self._gone and not super().__len__():
            return records
        kept = {key: value for key, value in records.items() if key not in self._gone} if self._gone else dict(records)
        for key in super().__iter__():
            kept[key] = super().__getitem__(key)
        return kept

    def _pristine(self, key: Any) -> bool:
        return key in self.baseline.records and key not in self._gone

    def __getitem__(self, key: str) -> Any:
        record = super().get(key, _MISSING)
        if record is not _MISSING:
            return record
        if not self._pristine(key):
            raise KeyError(key)
        if self._lending.allowed:
            return self.baseline.records[key]
        record = self.baseline.fresh(key)
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
        if key in self.baseline.records:
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
        joined: dict[str, Any] = self.copy() | other
        return joined

    def __ror__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        joined: dict[str, Any] = other | self.copy()
        return joined

    def clear(self) -> None:
        self._gone |= self.baseline.records.keys()
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
        """(key, canonical JSON) of every record that differs from the baseline's; None for one that is gone."""
        for key in sorted({*super().__iter__(), *self._gone}):
            if not super().__contains__(key):
                yield key, None
            elif (text := self.baseline.difference(key, super().__getitem__(key))) is not None:
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
