"""One process sends nothing to itself; several get what rank 0 made, or its failure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.strategy.from_rank_zero import FromRankZero
from tests.strategy.distributed import fork
from tests.strategy.tiny import connected


def refuse(*_: Any) -> Any:
    raise AssertionError("something was encoded")


def test_one_process_encodes_nothing() -> None:
    alone: Any = SimpleNamespace(is_global_zero=True, world_size=1, broadcast_bytes=refuse)
    made = object()
    assert FromRankZero(alone).share(lambda: made, encode=refuse, decode=refuse) is made


def shared(fails: bool) -> Any:
    """What a rank gets, and whether it made the value itself."""
    mesh, made = connected("d2").mesh, []
    ranks: Any = SimpleNamespace(is_global_zero=mesh.rank == 0, world_size=2, broadcast_bytes=mesh.broadcast_bytes)

    def make() -> dict[str, list[float]]:
        made.append(1)
        if fails:
            raise KeyError("no such task")
        return {"a": [1.0, 0.1]}

    try:
        return FromRankZero(ranks).json(make), len(made)
    except (KeyError, InfrastructureFault) as error:
        return f"{type(error).__name__}: {error}", len(made)


def test_every_rank_gets_what_rank_0_made() -> None:
    assert fork(2, shared, False) == [({"a": [1.0, 0.1]}, 1), ({"a": [1.0, 0.1]}, 0)]


def test_the_failure_of_rank_0_ends_every_rank() -> None:
    (first, _), (second, made) = fork(2, shared, True)
    assert first == "KeyError: 'no such task'"
    assert second.startswith("InfrastructureFault: rank 0: failed") and "no such task" in second and made == 0
