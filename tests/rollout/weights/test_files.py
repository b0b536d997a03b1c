"""Weight files are private, are removed after their process ended, and are written where there is room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tau2_lightning.rollout.weights.files import WeightFiles

TENSORS = {"layer.weight": torch.ones(10, 10)}


def test_files_are_private_and_orphans_are_swept(tmp_path):
    orphan, unborn = tmp_path / "tau2-lightning-orphan", tmp_path / "tau2-lightning-unborn"
    for folder in (orphan, unborn):
        folder.mkdir()
    for name in (".in-use", "v1.safetensors"):
        (orphan / name).touch()
    other = WeightFiles(shared=tmp_path, fallback=tmp_path)  # stands for another process
    kept = other.write("v1", TENSORS)
    files = WeightFiles(shared=tmp_path, fallback=tmp_path)
    path = files.write("v1", TENSORS)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not orphan.exists() and unborn.exists() and kept.exists()
    files.close()
    assert not path.exists()
    other.close()
    assert not kept.exists()


def test_full_shared_memory_falls_back(tmp_path, monkeypatch):
    import shutil

    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir(), large.mkdir()
    real = shutil.disk_usage
    usage = type(real(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda p: usage(1, 1, 0) if Path(p).parent == small else real(p))
    assert WeightFiles(shared=small, fallback=large).write("v1", TENSORS).is_relative_to(large)
    monkeypatch.setattr("shutil.disk_usage", lambda p: usage(1, 1, 0))
    with pytest.raises(OSError, match="no room"):
        WeightFiles(shared=small, fallback=large).write("v1", TENSORS)
