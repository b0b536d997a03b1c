"""The GRPO module on real recorded rollouts: every layout trains, validates and resumes as one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.config.allocation import ParallelSpec
from tests.strategy.distributed import fork
from tests.strategy.recorded_job import recorded, run, save_policy

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def one(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process, one epoch; its checkpoint is in ``folder``."""
    folder = tmp_path_factory.mktemp("one")
    return {**train("d1", policy, folder)[0], "folder": folder}


def train(layout: str, policy: Path, folder: Path, *more: Any) -> list[dict[str, Any]]:
    return fork(ParallelSpec.parse(layout).world, run, layout, policy, folder, *more, timeout=280.0)


def same(got: dict[str, Any], want: dict[str, Any]) -> None:
    """Losses and metrics to 1e-6 (of their size, where that is above 1), positions exactly."""
    for key in ("order", "given", "version", "global_step"):
        assert got[key] == want[key], key
    assert len(got["steps"]) == len(want["steps"]) > 0
    for mine, theirs in zip(
        [got["before"], *got["steps"], got["after"]], [want["before"], *want["steps"], want["after"]], strict=True
    ):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, abs=TOLERANCE, rel=TOLERANCE), name


def test_the_recorded_rollouts_are_worth_learning_from() -> None:
    for number in (0, 1):
        batch = recorded(number)
        assert len(batch) >= 12 and batch.n_tokens > 500
        assert {float(row.advantages.max()) > 0 for row in batch.rows} == {True, False}
        assert all((row.behaviour_logprobs[row.loss_mask] < 0).any() for row in batch.rows)


def test_a_pipeline_trains_and_validates_as_one_process(one: dict[str, Any], policy: Path, tmp_path: Path) -> None:
    assert one["before"] != one["after"] and one["order"] == [0, 1] and one["version"] == 2
    assert all(step["optim/grad_norm"] > 0.01 for step in one["steps"])
    for rank in train("p2", policy, tmp_path):
        same(rank, one)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["d2p2t1", "d1p2t2", "d2p2t2"])
def test_a_layout_trains_and_validates_as_one_process(
    layout: str, one: dict[str, Any], policy: Path, tmp_path: Path
) -> None:
    for rank in train(layout, policy, tmp_path):
        same(rank, one)


@pytest.mark.slow
def test_checkpoints_resume_on_other_layouts(one: dict[str, Any], policy: Path, tmp_path: Path) -> None:
    """d2p2 -> t2 -> one process, against one process resumed twice and one process that never stopped."""
    folders = [tmp_path / name for name in "abcde"]
    first = train("d2p2", policy, folders[0])
    second = train("t2", policy, folders[1], folders[0] / "last.ckpt", 2)
    third = train("d1", policy, folders[2], folders[1] / "last.ckpt", 3)
    alone_second = train("d1", policy, folders[3], one["folder"] / "last.ckpt", 2)
    alone_third = train("d1", policy, folders[4], folders[3] / "last.ckpt", 3)
    for rank in second:
        same(rank, alone_second[0])
    same(third[0], alone_third[0])
    assert all(rank["loaded_random"] == first[0]["saved_random"] for rank in second)
    assert third[0]["loaded_random"] == second[0]["saved_random"]
    assert third[0]["before"]["logprob"] == pytest.approx(second[0]["after"]["logprob"], abs=TOLERANCE)
    through = train("d1", policy, tmp_path / "f", None, 3)[0]
    assert len(through["steps"]) == 6 and through["given"] == third[0]["given"] == 6
    for mine, theirs in zip([*one["steps"], *second[0]["steps"], *third[0]["steps"]], through["steps"], strict=True):
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, abs=TOLERANCE, rel=TOLERANCE), name
