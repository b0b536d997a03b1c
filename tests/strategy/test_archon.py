"""ArchonStrategy inside Lightning: fit, validate before and after, checkpoints that move between layouts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from tau2_lightning.errors import ConfigError
from tau2_lightning.strategy import ArchonStrategy, checkpoint
from tau2_lightning.strategy.saving import CheckpointSaver
from tests.strategy.lightning_job import OtherModule, Steps, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("one")
    return folder, run("d1p1t1", str(folder))


def close(left: Any, right: Any, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(torch.tensor(left), torch.tensor(right), atol=tolerance, rtol=0)


def test_one_process_fits_validates_and_spawns_nothing(one: tuple[Path, dict[str, Any]]) -> None:
    _, result = one
    assert result["step"] == 3 and len(result["seen"]) == 3
    assert result["before"] != result["after"] and result["after"] == result["reloaded"]
    assert not torch.distributed.is_initialized()


def test_resuming_restores_weights_optimizer_schedule_and_rng(one: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = one
    pl.seed_everything(1, verbose=False)
    trainer = pl.Trainer(
        strategy=ArchonStrategy("d1"), accelerator="cpu", devices=1, logger=False, max_epochs=2,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    module = OtherModule()
    trainer.fit(module, DataLoader(Steps(), batch_size=None))  # six steps in one go
    resumed = run("d1", str(tmp_path), str(folder / "last.ckpt"))
    assert [row[:3] for row in resumed["seen"]] == [row[:3] for row in module.seen[3:]]
    assert resumed["step"] == 6


def test_a_checkpoint_of_another_model_names_both(one: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds .*num_hidden_layers=4.* but .*num_hidden_layers=2"):
        run("d1", str(tmp_path), str(one[0] / "last.ckpt"), layers=2)


def test_an_unfinished_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished checkpoint"):
        checkpoint.read_meta(tmp_path)


def test_metadata_that_would_need_pickle_is_refused_when_saving(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"\['odd'\]"):
        CheckpointSaver().save(tmp_path / "x.ckpt", {}, [], {}, {"fine": [1], "odd": OtherModule})
    assert not list(tmp_path.iterdir())


def test_rng_state_round_trips() -> None:
    import random

    import numpy as np

    state = checkpoint.rng_state()
    drawn = (torch.rand(2).tolist(), random.random(), np.random.rand())
    checkpoint.restore_rng(state)
    assert drawn == (torch.rand(2).tolist(), random.random(), np.random.rand())


def test_processes_must_match_the_layout() -> None:
    with pytest.raises(ConfigError, match="needs 4 processes, the Trainer has 1 x 1"):
        pl.Trainer(strategy=ArchonStrategy("vllm:d1+archon:d2p2t1"), accelerator="cpu", devices=1, logger=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("d0", "not positive"),
        ("vllm:d1", "no training component"),
        ("megatron:(attn:d2|ffn:t2)", "split each expert"),
        ("q1", "unknown dimension"),
    ],
)
def test_bad_allocations_are_config_errors(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ArchonStrategy(text)


def test_hybrid_allocation_becomes_data_and_expert_sizes() -> None:
    spec = ArchonStrategy("archon:(attn:d2c2|ffn:e4)").spec
    assert (spec.d, spec.c, spec.e, spec.world) == (2, 2, 4, 4)
    spec = ArchonStrategy("megatron:(attn:d1p12t4|ffn:d1p12e4)").spec  # AReaL's tau2 recipe for 235B
    assert (spec.p, spec.t, spec.e, spec.world) == (12, 4, 4, 48)


def launched(text: str, folder: Path, resume: Path | None = None) -> dict[str, Any]:
    """Run with Lightning's own subprocess launcher, as a user's script would."""
    command = [
        sys.executable,
        "-m",
        "tests.strategy.lightning_job",
        text,
        str(folder),
        *([str(resume)] if resume else []),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = torch.load(folder / "result.pt", weights_only=False)
    return result


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a training job of up to four processes for each layout
def test_layouts_in_lightning_agree_and_checkpoints_move(one: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """d2p2 trains as one process does; its checkpoint resumes on t2 and on one process to the same losses."""
    parallel = launched("d2p2t1", tmp_path / "a")
    close([row[:3] for row in parallel["seen"]], [row[:3] for row in one[1]["seen"]])
    for key in ("before", "after", "reloaded"):
        close([each["val"] for each in parallel[key]], [each["val"] for each in one[1][key]])
    saved = tmp_path / "a" / "last.ckpt"
    single = run("d1", str(tmp_path / "b"), str(saved))
    tensor = launched("p2t2", tmp_path / "c", saved)
    assert all(found["votes"] == [True, False, True, False] for found in (one[1], parallel, tensor))
    for other in (tensor, run("d1", str(tmp_path / "d"), str(one[0] / "last.ckpt"))):
        close([row[:3] for row in other["seen"]], [row[:3] for row in single["seen"]])
    back = launched("d2", tmp_path / "e", tmp_path / "c" / "last.ckpt")
    assert back["step"] == 6
