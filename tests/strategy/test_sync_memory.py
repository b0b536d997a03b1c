"""Gathering weights for the engines holds one bucket, not one model."""

from __future__ import annotations

from typing import Any

import pytest

from tau2_lightning.config.allocation import ParallelSpec
from tests.strategy.accounting import LiveBytes
from tests.strategy.distributed import fork
from tests.strategy.tiny import connected, tiny_model

LAYERS, BUCKET = 24, 40_000


def gather(text: str, keep: bool) -> dict[str, int]:
    """Walk over all buckets, as the publisher does; ``keep`` keeps them all, which the publisher must not do."""
    compute = connected(text)
    compute.parallelize(tiny_model(tied=True, layers=LAYERS))
    kept: list[Any] = []
    total = largest = count = 0
    with LiveBytes() as live:
        for bucket in compute.iter_full_weights(BUCKET):
            total += sum(tensor.nbytes for _, tensor in bucket)
            largest = max(largest, *(tensor.nbytes for _, tensor in bucket), 0, 0)
            count += 1
            kept += list(bucket) if keep else []
    return {"peak": live.peak, "total": total, "largest": largest, "count": count}


@pytest.mark.parametrize("text", ["d2", "d2p2", pytest.param("p2t2", marks=pytest.mark.slow)])
def test_one_bucket_at_a_time(text: str) -> None:
    ranks = fork(ParallelSpec.parse(text).world, gather, text, False)
    total, largest = ranks[0]["total"], ranks[0]["largest"]
    assert ranks[0]["count"] > 10 and total > 10 * BUCKET and all(rank["total"] == 0 for rank in ranks[1:])
    for rank in ranks:
        # A tensor larger than the bucket size has its own bucket; while a tensor is gathered, its parts exist too.
        assert rank["peak"] <= max(BUCKET, largest) + 2 * largest
        assert rank["peak"] < total / 3


def test_the_count_would_notice_a_whole_model() -> None:
    first = fork(2, gather, "d2", True)[0]
    assert first["peak"] >= first["total"]
