"""Weights that leave the trainer: in buckets for the engines, as a Hugging Face folder, as an adapter's folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import weights
from .families.registry import family_of
from .lora import AdapterPlan, merged, write_peft_folder
from .mesh import Mesh


@dataclass(frozen=True)
class Origin:
    """The folder a model comes from ("" for a model made in memory), and its names of a causal LM's tensors."""

    path: str = ""
    served_as: Callable[[str], str] = str


class Exporter:
    """Gathers the full tensors of a model that is split over ranks.

    It is made from the whole model, before the split: ``owner(name)`` is the pipeline rank that gets a tensor.
    ``origin`` is where the model comes from: engines that serve it know tensors by the names that its files have.
    """

    def __init__(
        self, model: Any, owner: Callable[[str], int], adapters: AdapterPlan | None, mesh: Mesh, origin: Origin
    ) -> None:
        tensors = weights.persistent_tensors(model)
        self._table = [weights.WeightSpec(name, tuple(t.shape), t.dtype, owner(name)) for name, t in tensors.items()]
        shapes = adapters.shapes() if adapters else ()
        self._adapter_table = [weights.WeightSpec(name, size, torch.float32, owner(name)) for name, size in shapes]
        self._config, self._generation_config = model.config, getattr(model, "generation_config", None)
        self._adapters, self._mesh, self._origin = adapters, mesh, origin

    def iter_full_weights(self, model: nn.Module, bucket_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
        """See `ArchonCompute.iter_full_weights`. ``model`` is this rank's part."""
        owned, called = weights.persistent_tensors(model), self._origin.served_as
        return weights.iter_full_weights(self._table, owned, self._mesh, bucket_bytes, self._merge(owned), called)

    def save_pretrained(self, model: nn.Module, path: str | Path, tokenizer: Any) -> None:
        """See `ArchonCompute.save_pretrained`."""
        config, owned = copy.deepcopy(self._config), weights.persistent_tensors(model)
        config.use_cache = True
        config.dtype = _stored_dtype(self._origin.path) or config.dtype  # not float32, in which weights are trained
        finish, family = self._merge(owned), family_of(config)
        pieces = family.fused if family is not None else None
        weights.save_pretrained(
            path, config, self._generation_config, self._table, owned, self._mesh, tokenizer, finish, pieces
        )
        if self._adapters is not None:
            self.save_adapter(model, Path(path) / "adapter")

    def save_adapter(self, model: nn.Module, path: str | Path) -> None:
        """See `ArchonCompute.save_adapter`."""
        if self._adapters is None:
            raise RuntimeError("there is no adapter: the engine was made without lora")
        owned = weights.persistent_tensors(model)
        tensors: dict[str, Tensor] = {}
        for bucket in weights.iter_full_weights(self._adapter_table, owned, self._mesh, weights.BUCKET_BYTES):
            tensors |= dict(bucket)
        if self._mesh.rank == 0:
            write_peft_folder(Path(path), tensors, self._adapters, self._origin.path)

    def _merge(self, owned: dict[str, Tensor]) -> weights.Finish | None:
        if self._adapters is None:
            return None
        scaling = self._adapters.settings.scaling
        return lambda name, full: merged(name, full, owned, scaling)


def _stored_dtype(source: str) -> torch.dtype | None:
    """The dtype of the folder ``source``, in which engines serve it; None for a model that comes from no folder."""
    if not (Path(source) / "config.json").is_file():
        return None
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return cast("torch.dtype | None", config.dtype)
