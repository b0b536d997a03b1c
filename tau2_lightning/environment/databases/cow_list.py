"""A list of records that are copied one by one, when they are first reached."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from .records import Baseline, Lending


class CowList(list[Any]):
    """A list over a baseline's records: a record is copied when first reached by index, slice or iteration.

    Its storage holds all records, the shared ones until they are reached, so that C code that reads a list's storage
    finds them all. Nothing is copied while ``lending.allowed``.
    """

    __slots__ = ("_lending", "baseline")

    def __init__(self, baseline: Baseline, lending: Lending) -> None:
        super().__init__(baseline.records.values())
        self.baseline, self._lending = baseline, lending

    def _own(self, index: int, record: Any) -> Any:
        """The record at ``index``, copied if it was shared."""
        key = self.baseline.key_of.get(id(record))
        if key is None:
            return record
        record = self.baseline.fresh(key)
        super().__setitem__(index, record)
        return record

    def __getitem__(self, index: Any) -> Any:
        if self._lending.allowed:
            return super().__getitem__(index)
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._own(index, super().__getitem__(index))

    def __iter__(self) -> Iterator[Any]:
        return super().__iter__() if self._lending.allowed else self._walk()

    def _walk(self) -> Iterator[Any]:
        shared = self.baseline.key_of
        for index, record in enumerate(super().__iter__()):
            yield self._own(index, record) if id(record) in shared else record

    def __reversed__(self) -> Iterator[Any]:
        for index in range(len(self) - 1, -1, -1):
            yield self[index]

    def pop(self, index: Any = -1) -> Any:
        record = super().pop(index)
        key = self.baseline.key_of.get(id(record))
        return record if key is None else self.baseline.fresh(key)

    def sort(self, **options: Any) -> None:
        list(self)  # copies all: a key function receives the records
        super().sort(**options)

    def copy(self) -> list[Any]:
        return list(self)

    __copy__ = copy

    def __add__(self, other: Any) -> list[Any]:
        return list(self) + list(other) if isinstance(other, list) else super().__add__(other)

    def __radd__(self, other: Any) -> list[Any]:
        return list(other) + list(self) if isinstance(other, list) else NotImplemented

    def __mul__(self, times: Any) -> list[Any]:
        product: list[Any] = list(self) * times
        return product

    __rmul__ = __mul__

    def __imul__(self, times: Any) -> CowList:
        list(self)  # copies all: otherwise each repetition would be copied by itself
        return super().__imul__(times)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return copy.deepcopy(list(super().__iter__()), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return list, (list(super().__iter__()),)

    def changes(self) -> Iterator[tuple[int, str | None]]:
        """(position, canonical JSON) of every record that differs from the baseline's there; None beyond the end."""
        for index, record in enumerate(super().__iter__()):
            if (text := self.baseline.difference(index, record)) is not None:
                yield index, text
        for index in range(len(self), len(self.baseline.records)):
            yield index, None
