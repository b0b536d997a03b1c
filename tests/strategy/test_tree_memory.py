"""A step over shared prefixes takes no more memory at its peak than one over packed rows of equally full micro-batches.

Counted in bytes that torch has allocated, not in the process's memory: the same on every run, and on a busy machine.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.allocations import peak_bytes
from benchmarks.lightning_step import loss
from tau2_lightning.batch.plain_rows import scoring_batch
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.strategy.compute import ArchonCompute
from tests.strategy.tiny import connected, tiny_model

POLICY, TICKET, OWN, LABELS = 300, 200, 100, 5


def microbatches(trunk_weight: float, *, shared: bool) -> list[MicroBatch]:
    """Two tickets behind a policy, 12 samples each; a micro-batch holds a row. Few labels, because the logits of a tiny
    model are larger than what its layers keep; those of a part of the labels have a limit of their own."""
    rng = np.random.default_rng(0)
    policy = rng.integers(3, 80, POLICY).tolist()
    openings = [[*policy, ticket, *rng.integers(3, 80, TICKET - 1).tolist()] for ticket in (1, 2)]
    rows = [[*opening, *rng.integers(3, 80, OWN).tolist()] for opening in openings for _ in range(12)]
    batch = scoring_batch(rows, [list(range(POLICY + TICKET, POLICY + TICKET + LABELS))] * len(rows))
    budget = POLICY + TICKET + OWN
    return batch.microbatches(budget, packed=True, shared=shared, trunk_weight=trunk_weight)


def peak_of_step(compute: ArchonCompute, some: list[MicroBatch]) -> int:
    compute.forward_backward(some[:1], loss)  # gradients of the weights, and what is made once
    return peak_bytes(lambda: compute.forward_backward(some, loss))


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_a_step_peaks_no_higher_than_with_packed_rows(checkpointing: str) -> None:
    compute = connected("d1", activation_checkpointing=checkpointing)
    compute.parallelize(tiny_model(positions=1024))
    forest = microbatches(compute.trunk_weight, shared=True)
    assert max(len(mb["model"].trunk.path()) for mb in forest if mb["model"].trunk) == 2
    packed = peak_of_step(compute, microbatches(0.0, shared=False))
    assert 0.5 * packed < peak_of_step(compute, forest) <= packed


def test_control_a_trunk_that_does_not_count_takes_memory_beyond_that_of_packed_rows() -> None:
    compute = connected("d1", activation_checkpointing="full")
    compute.parallelize(tiny_model(positions=1024))
    packed = peak_of_step(compute, microbatches(0.0, shared=False))
    assert peak_of_step(compute, microbatches(0.0, shared=True)) > packed
