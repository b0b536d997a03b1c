"""Reads checkpoint folders in torch's distributed format without running what is in them.

torch reads a checkpoint's ``.metadata`` with ``pickle.load``, and entries that are no tensors with
``torch.load(weights_only=False)``: a folder from somebody else could run any program. Here ``.metadata`` may name the
classes that describe tensors only, and every entry is a tensor (torch reads those with ``weights_only=True``).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from tau2_lightning.errors import ConfigError, Violation

_DESCRIPTIONS = "torch.distributed.checkpoint.metadata"
_ALLOWED = frozenset(
    {
        *((_DESCRIPTIONS, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
        *((_DESCRIPTIONS, name) for name in ("TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata")),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),  # Python 3.13
    }
)


class _Unpickler(pickle.Unpickler):
    """Makes objects of the allowed classes and torch's data types; raises UnpicklingError for every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """pickle: the object that a global of the file names."""
        if (module, name) in _ALLOWED or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"names {module}.{name}, which is no part of a checkpoint of this project")


class CheckpointReader(dcp.FileSystemReader):
    """torch's reader of a folder, with a ``.metadata`` that can run nothing and names no file outside the folder."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The description of the stored tensors. Raises UnpicklingError for what is no such description."""
        with self.fs.create_stream(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
            metadata = _described(file)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _described(file: Any) -> Metadata:
    metadata = _Unpickler(file).load()
    if not isinstance(metadata, Metadata):
        raise pickle.UnpicklingError(f"holds a {type(metadata).__name__}, no description of tensors")
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise pickle.UnpicklingError(f"{name} is no tensor")
    for place in (metadata.storage_data or {}).values():
        if Path(place.relative_path).name != place.relative_path:
            raise pickle.UnpicklingError(f"{place.relative_path!r} is no file of the folder")
    return metadata


def stored_tensors(folder: Path, key: str = "ckpt_path") -> dict[str, TensorStorageMetadata]:
    """The tensors of the checkpoint ``folder`` by name. Raises ConfigError about ``key`` where they cannot be read."""
    try:
        entries: Any = CheckpointReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:  # a pickle that was cut off can raise anything
        problem = f"its .metadata cannot be read ({type(error).__name__}: {error})"
        remedy = "Give another checkpoint, and none of somebody you do not trust"
        raise ConfigError([Violation(key, str(folder), problem, remedy)]) from error
    return dict(entries)


def read_into(folder: Path, tensors: dict[str, Tensor], *, alone: bool | None = None) -> None:
    """Read the named tensors of ``folder`` in place. Collective, unless ``alone`` (by default: where no process group
    is)."""
    alone = not dist.is_initialized() if alone is None else alone
    dcp.load(dict(tensors), storage_reader=CheckpointReader(str(folder)), checkpoint_id=str(folder), no_dist=alone)
