"""Weights that leave the trainer: in buckets for the engines, as a Hugging Face folder, as an adapter's folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tau2_lightning.policy.written import PolicyFiles

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
        tensors, files = self._stored(model, weights.BUCKET_BYTES), self._files(model)
        if self._mesh.rank == 0:
            replace(files, tensors=tensors).write(Path(path), tokenizer)
        else:
            for _ in tensors:  # takes part in gathering
                pass
        if self._mesh.device_mesh is not None:
            dist.barrier()

    def snapshot(self, model: nn.Module) -> PolicyFiles:
        """See `ArchonCompute.snapshot`."""
        files = self._files(model)
        return replace(files, tensors=list(self._stored(model, weights.BUCKET_BYTES)))

    def save_adapter(self, model: nn.Module, path: str | Path) -> None:
        """See `ArchonCompute.save_adapter`."""
        write = self._adapter_writer(model)
        if write is None:
            raise RuntimeError("there is no adapter: the engine was made without lora")
        if self._mesh.rank == 0:
            write(Path(path))

    def _files(self, model: nn.Module) -> PolicyFiles:
        """A policy's folder without its tensors. Collective."""
        config = copy.deepcopy(self._config)
        config.use_cache, config.dtype = True, self._dtype
        return PolicyFiles((), config, self._generation_config, self._adapter_writer(model))

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype in which engines serve the policy; not float32, in which weights are trained."""
        return _stored_dtype(self._origin.path) or self._config.dtype or torch.float32

    def _stored(self, model: nn.Module, bucket_bytes: int) -> Iterator[tuple[str, Tensor]]:
        """On rank 0 copies of all tensors on the CPU, as files hold them; nothing elsewhere. Collective.

        Engines compute in the files' dtype, so that the written weights equal those that they served.
        """
        owned, family = weights.persistent_tensors(model), family_of(self._config)
        pieces = family.fused if family is not None else None
        for bucket in weights.iter_full_weights(self._table, owned, self._mesh, bucket_bytes, self._merge(owned)):
            for name, full in bucket:
                dtype = self._dtype if full.is_floating_point() else full.dtype
                for stored, part in weights.as_stored(name, full, pieces):
                    yield stored, part.to("cpu", dtype, copy=True)

    def _adapter_writer(self, model: nn.Module) -> Callable[[Path], None] | None:
        """Writes copies of the adapters as a folder, on rank 0; None without adapters. Collective."""
        if self._adapters is None:
            return None
        owned, tensors = weights.persistent_tensors(model), dict[str, Tensor]()
        for bucket in weights.iter_full_weights(self._adapter_table, owned, self._mesh, weights.BUCKET_BYTES):
            tensors |= {name: full.detach().to("cpu", copy=True) for name, full in bucket}
        return partial(write_peft_folder, tensors=tensors, plan=self._adapters, base=self._origin.path)

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
