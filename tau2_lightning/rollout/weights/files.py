"""Weight files: buckets of full tensors as safetensors, in shared memory for engines on the same machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from tau2_lightning.rollout.engine.in_vllm.private_folders import SHARED_MEMORY, PrivateFolders


class WeightFiles:
    """Weight files in a private folder: in ``shared`` where that has room, else in ``fallback``.

    ``fallback`` is the temporary folder unless given. See `PrivateFolders` for the end of the folder.
    """

    def __init__(self, shared: Path = SHARED_MEMORY, fallback: Path | None = None) -> None:
        self._folders = PrivateFolders((shared, fallback or Path(tempfile.gettempdir())))

    def write(self, name: str, tensors: dict[str, torch.Tensor]) -> Path:
        """Write one file; returns its path. Raises OSError when neither folder has room."""
        path = self._folders.roomy(sum(tensor.nbytes for tensor in tensors.values())) / f"{name}.safetensors"
        save_file(tensors, path)
        return path

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write one file of any content; returns its path. Raises OSError when neither folder has room."""
        path = self._folders.roomy(len(data)) / name
        path.write_bytes(data)
        return path

    def close(self) -> None:
        """Remove the folder and everything in it."""
        self._folders.close()
