"""Reading a Hugging Face folder slice by slice, so that no rank that keeps a part of a model ever holds the whole.

The model is built on the meta device, split there, and each parameter then gets memory and its own rows from the
safetensors files, unit by unit, right before FSDP cuts the unit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from .families.family import Family, Parts
from .modules import find, put


class ModelFiles:
    """The tensors in the safetensors files of a folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        self.files: dict[str, str] = {}
        self._stack, self._open = ExitStack(), dict[str, Any]()
        if index.is_file():
            self.files = json.loads(index.read_text())["weight_map"]
        elif single.is_file():
            self.files = dict.fromkeys(self._handle(single.name).keys(), single.name)

    def __contains__(self, name: str) -> bool:
        return self.stored_name(name) in self.files

    def stored_name(self, name: str) -> str:
        """The name in the files of the tensor that a causal LM calls ``name``; ``name`` itself if the files lack it.

        Models that contain the causal LM have a prefix before all its names, or before all names except the head's.
        """
        for spelled in (name, name.replace("model.", "model.language_model.", 1), f"language_model.{name}"):
            if spelled in self.files:
                return spelled
        return name

    def of_text_model(self, *, composite: bool) -> list[str]:
        """The names that the causal LM has for the tensors of the files; ``composite`` files hold more than it has."""
        if not composite:
            return list(self.files)
        names = []
        for stored in self.files:
            inside = stored.removeprefix("language_model.").replace("model.language_model.", "model.", 1)
            if inside != stored or stored.startswith(f"{Parts.head}."):
                names.append(inside)
        return names

    def read(self, name: str, region: tuple[slice, ...]) -> Tensor:
        """A rectangular part of the tensor that a causal LM calls ``name``, on the CPU in its stored dtype."""
        stored = self.stored_name(name)
        part: Tensor = self._handle(self.files[stored]).get_slice(stored)[region]
        return part

    def whole(self, name: str) -> Tensor:
        """The tensor that a causal LM calls ``name``, on the CPU in its stored dtype."""
        stored = self.stored_name(name)
        full: Tensor = self._handle(self.files[stored]).get_tensor(stored)
        return full

    def close(self) -> None:
        """Close the files."""
        self._open.clear()
        self._stack.close()

    def _handle(self, file: str) -> Any:
        from safetensors import safe_open

        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(self.folder / file, framework="pt"))
        return self._open[file]


class ShardedLoader:
    """Gives memory to the meta parameters of a model, and reads their part of the files into it.

    Parameters stay the same objects and may be DTensors (tensor- or expert-parallel).
    """

    def __init__(self, files: ModelFiles, family: Family, device: torch.device) -> None:
        self.files, self.family, self.device = files, family, device
        self._names: dict[int, str] = {}
        self._tied: Mapping[str, str] = {}

    def served_as(self, name: str) -> str:
        """The name by which an engine that serves these files knows the tensor that the causal LM calls ``name``."""
        return self.files.stored_name(name)

    def bind(self, model: Any) -> None:
        """Note the names of the parameters for `fill`: those of ``model``, which is already split."""
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._tied = _tied_names(model.config, self.family.parts)

    def fill(self, parameters: Iterable[nn.Parameter], shard: tuple[int, int] = (0, 1)) -> None:
        """Give memory to the parameters that are still on the meta device. If FSDP shards them next, ``shard`` is (this
        rank's place among the shards, their number), and only the rows of this rank are read.
        """
        for parameter in parameters:
            if parameter.device.type == "meta":
                self._fill(parameter, shard)

    def _fill(self, parameter: nn.Parameter, rows: tuple[int, int]) -> None:
        shape = list(parameter.shape)
        start, length = [0] * len(shape), list(shape)
        if isinstance(parameter, DTensor):
            for axis, placement in enumerate(parameter.placements):
                if isinstance(placement, Shard):
                    rank, size = parameter.device_mesh.get_local_rank(axis), parameter.device_mesh.size(axis)
                    start[placement.dim], length[placement.dim] = _chunk(shape[placement.dim], rank, size)
        memory = torch.empty(length, dtype=parameter.dtype, device=self.device)
        first, count = _chunk(length[0], *rows)
        if memory.numel() and count:
            region: tuple[slice, ...] = (slice(start[0] + first, start[0] + first + count),)
            region += tuple(slice(s, s + n) for s, n in zip(start[1:], length[1:], strict=True))
            self._read(self._names[id(parameter)], region, memory.narrow(0, first, count))
        real: Tensor = memory
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            shape_, stride = parameter.shape, parameter.stride()
            real = DTensor.from_local(memory, mesh, placements, run_check=False, shape=shape_, stride=stride)
        # Tied layers, stages and this loader's table refer to the parameter: it must stay the same object.
        swap: Any = torch.utils.swap_tensors  # untyped
        swap(parameter, nn.Parameter(real, requires_grad=parameter.requires_grad))

    def _read(self, name: str, region: tuple[slice, ...], into: Tensor) -> None:
        name = self._tied.get(name, name) if name not in self.files else name
        if name in self.files:
            into.copy_(self.files.read(name, region))
            return
        for index, target in zip(range(region[0].start, region[0].stop), into, strict=True):
            pieces = self.family.fused(name, index)
            assert pieces, f"{name} is not in {self.files.folder}"
            for piece, part in zip(pieces, target.chunk(len(pieces)), strict=True):
                rows = region[1] if len(pieces) == 1 else slice(0, len(part))
                part.copy_(self.files.read(piece, (rows, *region[2:])))


def missing(files: ModelFiles, model: Any, family: Family) -> str | None:
    """A parameter of ``model`` that ``files`` lack: under its own name and under the names in ``family.fused``."""
    tied = _tied_names(model.config, family.parts)
    for name, parameter in model.named_parameters():
        pieces = family.fused(name, parameter.shape[0] - 1)
        fused = bool(pieces) and all(piece in files for piece in pieces)
        if name not in files and tied.get(name, "") not in files and not fused:
            return str(name)
    return None


def meta_model(config: Any, parts: Parts, device: torch.device) -> Any:
    """The architecture of ``config`` without memory for weights, float32; its buffers are real, on ``device``."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with device:
        put(model, parts.rotary, type(find(model, parts.rotary))(config=config))
    for module in model.modules():
        lacking = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in lacking:
            setattr(module, name, torch.empty_like(getattr(module, name), device=device))
        if lacking:
            model._init_weights(module)  # its parameters have no memory, so this fills its buffers only
    model.eval()  # as after from_pretrained
    return model


def _tied_names(config: Any, parts: Parts) -> Mapping[str, str]:
    """The name of a tied head's weight -> the name its values are stored under."""
    if not getattr(config, "tie_word_embeddings", False):
        return {}
    head, embedding = parts.tied
    return {head: embedding}


def _chunk(total: int, rank: int, size: int) -> tuple[int, int]:
    """Start and length of torch.chunk's piece ``rank`` of ``size``."""
    each = -(-total // size)
    start = min(rank * each, total)
    return start, min(each, total - start)
