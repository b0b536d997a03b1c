"""mode=delta is refused where it could not send less than all weights."""

from __future__ import annotations

import pytest

from tau2_lightning.run.compose import load_config
from tau2_lightning.run.weight_sync_rules import check_weight_sync

DELTA = ("rollout.weight_sync.mode=delta", "actor.dtype=bfloat16")


def problems(*words: str) -> list[str]:
    return [str(one) for one in check_weight_sync(load_config(words, check=False))]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["rollout.weight_sync.backend=nccl"], "backend is nccl"),
        (["rollout.weight_sync.backend=shm"], "backend is shm"),
        (["actor.dtype=float32"], "actor.dtype=bfloat16"),
        (["actor.lora.r=8"], "actor.lora.sync=merged"),
    ],
)
def test_a_delta_that_could_save_nothing_is_refused(words: list[str], named: str) -> None:
    (problem,) = problems(*DELTA, *words)
    assert named in problem and "mode=full" in problem
    assert not problems(*words, "rollout.weight_sync.mode=full")


@pytest.mark.parametrize(
    "words", [[], ["rollout.weight_sync.backend=http"], ["actor.lora.r=8", "actor.lora.sync=merged"]]
)
def test_other_deltas_are_taken(words: list[str]) -> None:
    assert not problems(*DELTA, *words)
