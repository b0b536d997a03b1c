"""Values that only rank 0 can make, on every rank; its failure ends every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import orjson

from tau2_lightning.errors import InfrastructureFault

T = TypeVar("T")
_OK, _FAILED = b"+", b"-"
_EVERYWHERE = "raised_on_every_rank"


def reached_every_rank(error: BaseException) -> bool:
    """Whether ``error`` was raised on every rank at the same place, so that a collective may follow it."""
    return bool(vars(error).get(_EVERYWHERE))


@runtime_checkable
class Ranks(Protocol):
    """The interface of a strategy that is used here; ``ArchonStrategy`` has it."""

    @property
    def is_global_zero(self) -> bool: ...
    @property
    def world_size(self) -> int: ...
    def broadcast_bytes(self, data: bytes | None) -> bytes: ...


class FromRankZero:
    """Runs a function on rank 0 and gives its result to every rank of ``ranks``. Every call is collective.

    When the function raises, rank 0 raises that error again and every other rank raises InfrastructureFault with its
    text, so that no rank waits in a collective for one that is gone.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def share(self, make: Callable[[], T], *, encode: Callable[[T], bytes], decode: Callable[[bytes], T]) -> T:
        """The result of ``make`` on every rank, sent as ``encode`` writes it. One process encodes nothing."""
        if self._ranks.world_size == 1:
            return make()
        message: bytes | None = None
        failure: BaseException | None = None
        if self._ranks.is_global_zero:
            try:
                message = _OK + encode(make())
            except BaseException as error:  # noqa: BLE001  # raised again below, after the other ranks know
                failure, message = error, _FAILED + repr(error).encode()
        received = self._ranks.broadcast_bytes(message)
        if failure is not None:
            vars(failure)[_EVERYWHERE] = True
            raise failure
        if not received.startswith(_OK):
            fault = InfrastructureFault("rank 0", "failed", received[1:].decode())
            vars(fault)[_EVERYWHERE] = True
            raise fault
        return decode(received[1:])

    def json(self, make: Callable[[], T]) -> T:
        """``share`` of a JSON value: None, numbers, text, lists and dicts with text keys."""
        found: T = self.share(make, encode=orjson.dumps, decode=orjson.loads)
        return found
