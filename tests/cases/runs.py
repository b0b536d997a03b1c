"""The main job without an engine, as the cases of faults start it: in this process, or as a process to send signals."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_service import FakeService
from tests.jobs import run_job

# One domain, one task a batch, no validation: a step takes a tenth of a second.
WORDS = (
    "domain=mock", "actor.optimizer.lr=1e-3", "actor.optimizer.warmup_steps=0", "actor.optimizer.final_lr_fraction=1",
    "valid_dataset.num_trials=1", "train_dataset.batches_per_epoch=2", "trainer.max_epochs=2",
    "~callbacks.results", "trainer.limit_val_batches=0",
)  # fmt: skip


class Runs:
    """Runs the main job in ``root``/e/t."""

    def __init__(self, policy: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.policy, self.root, self._monkeypatch = policy, root, monkeypatch

    def __call__(self, *words: str) -> FakeService:
        cache = f"cache_dir={self.root / 'cache'}"
        return run_job(self.policy, self.root, self._monkeypatch, *WORDS, cache, *words)

    @property
    def folder(self) -> Path:
        return self.root / "e" / "t"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def kept(self) -> list[str]:
        """Names of the checkpoints, by step."""
        return sorted((path.name for path in self.checkpoints.iterdir()), key=lambda name: (len(name), name))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
