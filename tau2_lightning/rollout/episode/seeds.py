"""Seeds: one number per episode and per turn, independent of timing and of other episodes."""

from __future__ import annotations

from hashlib import sha256

#: Seeds are in [0, SEED_RANGE): what every inference server takes.
SEED_RANGE = 2**31


def derived_seed(*path: int | str) -> int:
    """The seed at ``path``, e.g. (run seed, "train", step, group, sample): equal paths have
    equal seeds, others unrelated ones.

    Sums and products of indices would give the samples of different groups the same seeds.
    """
    digest = sha256("/".join(map(repr, path)).encode()).digest()
    return int.from_bytes(digest[:8]) % SEED_RANGE
