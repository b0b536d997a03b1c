"""What may be meant by a key that does not exist: one that is near, else the keys of its section."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

#: Least likeness of every part of a key, and of the last part alone for a key without a section. 1 is equal, which a
#: key of another section must be.
_NEAR, _ALONE = 0.7, 0.85


def suggestion(key: str, known: Collection[str], prefix: str = "") -> str:
    """The remedy for the unknown ``key``: the nearest of ``known``, or what its section has. ``prefix`` is written
    before each."""
    near = nearest(key, known)
    if max(_likeness(key, near)[:2]) > 0:
        return f"Did you mean {prefix}{near}?"
    section = key.rpartition(".")[0]
    while section and not any(name.startswith(f"{section}.") for name in known):
        section = section.rpartition(".")[0]
    start = f"{section}." if section else ""
    inside = sorted({name.removeprefix(start).partition(".")[0] for name in known if name.startswith(start)})
    where = f"{prefix}{section}".rstrip(".")
    return f"{f'Keys of {where}' if where else 'Keys and sections'}: {', '.join(inside)}"


def nearest(key: str, known: Iterable[str]) -> str:
    """The one of ``known`` that is most like ``key``, in all its parts or in the last one: ``lr`` gives
    ``actor.optimizer.lr``."""
    return max(sorted(known), key=lambda candidate: _likeness(key, candidate))


def _likeness(key: str, candidate: str) -> tuple[float, float, float]:
    """How near the two are part by part, and in the last part alone; 0 for what is not near. Then how alike as a whole.

    As a whole any two keys of a section are alike, so that decides between near ones only.
    """
    parts, others = key.split("."), candidate.split(".")
    pairs = [_ratio(one, other) for one, other in zip(parts, others, strict=False)]
    every = min(pairs) if len(parts) == len(others) else 0.0
    last = _ratio(parts[-1], others[-1])
    return every * (every >= _NEAR), last * (last >= (1 if parts[1:] else _ALONE)), _ratio(key, candidate)


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
