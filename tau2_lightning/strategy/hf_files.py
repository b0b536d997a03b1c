"""Reading a Hugging Face folder slice by slice, so that no rank ever holds a whole model it keeps a part of.

The model is built on the meta device, split there, and each parameter then gets memory and its own rows from the
safetensors files, unit by unit, right before FSDP cuts the unit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

# Fused on this side, one tensor an expert in the files.
_FUSED = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)$")


class ModelFiles:
    """The safetensors of a folder by tensor name. ``bytes_read`` and ``largest_read`` count what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        self.files: dict[str, str] = {}
        self._stack, self._open = ExitStack(), dict[str, Any]()
        if index.is_file():
            self.files = json.loads(index.read_text())["weight_map"]
        elif single.is_file():
            self.files = dict.fromkeys(self._handle(single.name).keys(), single.name)
        self.bytes_read = self.largest_read = 0

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def read(self, name: str, region: tuple[slice, ...]) -> Tensor:
        """A rectangular part of the tensor called ``name``, on the CPU in its stored dtype."""
        part: Tensor = self._handle(self.files[name]).get_slice(name)[region]
        self.bytes_read += part.nbytes
        self.largest_read = max(self.largest_read, part.nbytes)
        return part

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
    """Gives the meta parameters of a model memory and their part of the files' content.

    Parameters stay the same objects and may be DTensors (tensor- or expert-parallel). ``rows`` is this rank's (rank,
    size) of the FSDP shards: of a parameter that FSDP will cut, only those rows are read.
    """

    def __init__(self, files: ModelFiles, device: torch.device, rows: tuple[int, int]) -> None:
        self.files, self.device, self.rows = files, device, rows
        self._names: dict[int, str] = {}
        self._tied: Mapping[str, str] = {}

    def bind(self, model: Any) -> None:
        """Learn the names of the parameters to come: those of ``model``, split as it will stay."""
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._tied = _tied_names(model)

    def fill(self, parameters: Iterable[nn.Parameter], *, cut: bool) -> None:
        """Materialise those still on meta; ``cut`` when FSDP shards them next."""
        for parameter in parameters:
            if parameter.device.type == "meta":
                self._fill(parameter, self.rows if cut else (0, 1))

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
        # The same object everywhere it is known: tied layers, stages, the loader's own table.
        torch.utils.swap_tensors(parameter, nn.Parameter(real, requires_grad=parameter.requires_grad))

    def _read(self, name: str, region: tuple[slice, ...], into: Tensor) -> None:
        name = self._tied.get(name, name) if name not in self.files else name
        if name in self.files:
            into.copy_(self.files.read(name, region))
            return
        match = _FUSED.match(name)
        assert match is not None, f"{name} is not in {self.files.folder}"
        experts, part = match.groups()
        for index, target in zip(range(region[0].start, region[0].stop), into, strict=True):
            if part == "down_proj":
                target.copy_(self.files.read(f"{experts}.{index}.down_proj.weight", region[1:]))
                continue
            for half, source in zip(target.chunk(2), ("gate_proj", "up_proj"), strict=True):
                half.copy_(self.files.read(f"{experts}.{index}.{source}.weight", (slice(0, len(half)), region[2])))


def covers(files: ModelFiles, model: Any) -> bool:
    """Whether every parameter of ``model`` can be read from ``files`` under its own name."""
    tied = _tied_names(model)
    for name, parameter in model.named_parameters():
        match = _FUSED.match(name)
        single = match and f"{match[1]}.{parameter.shape[0] - 1}.down_proj.weight"
        if name not in files and tied.get(name, "") not in files and (single or "") not in files:
            return False
    return True


def meta_model(config: Any, device: torch.device) -> Any:
    """The architecture of ``config`` without memory for weights, float32; its rotary table is real, on ``device``."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    inner = model.model
    with device:
        inner.rotary_emb = type(inner.rotary_emb)(config=config)
    model.eval()  # as from_pretrained leaves it
    return model


def _tied_names(model: Any) -> Mapping[str, str]:
    """A tied head's name -> the name its values are stored under."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return {}
    return {"lm_head.weight": "model.embed_tokens.weight"}


def _chunk(total: int, rank: int, size: int) -> tuple[int, int]:
    """Start and length of torch.chunk's piece ``rank`` of ``size``."""
    each = -(-total // size)
    start = min(rank * each, total)
    return start, min(each, total - start)
