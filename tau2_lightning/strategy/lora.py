"""LoRA (arXiv:2106.09685): W x + (alpha / r) B A x with W frozen, under data, tensor and pipeline parallelism.

Base weights keep their Hugging Face names. A linear layer with ``q_proj.weight`` gets ``q_proj.adapter.lora_A.weight``
[r, in] and ``q_proj.adapter.lora_B.weight`` [out, r]. Saved adapters have PEFT's names and load in PEFT and vLLM.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import functional as F

from tau2_lightning.errors import ConfigError, Violation

from .collectives import copy_to_group
from .tensor_parallel import ColumnLinear, RowLinear, distribute, local

ALL_LINEAR = "all-linear"
BaseDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class LoRASettings:
    """Rank ``r``, scale numerator ``alpha``, and the last names of the linear layers that get an adapter.

    ``target_modules`` ("all-linear",) means every linear layer but the output head.
    """

    r: int
    alpha: float
    target_modules: tuple[str, ...] = (ALL_LINEAR,)

    @classmethod
    def of(cls, section: Any) -> LoRASettings | None:
        """From the configuration's ``actor.lora``; None when ``r`` is 0."""
        return cls(section.r, section.alpha, tuple(section.target_modules)) if section.r else None

    @property
    def scaling(self) -> float:
        """Factor of the adapter's output, ``alpha / r``."""
        return self.alpha / self.r

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for checkpoints."""
        return {**asdict(self), "target_modules": list(self.target_modules)}


class _Factor(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


class Adapter(nn.Module):
    """(alpha / r) B A x. Beside a ColumnLinear B is split by rows, beside a RowLinear A is split by columns.

    The other factor is whole on each rank and sees a part of the outputs or inputs: its gradient is summed over the
    group. Beside a RowLinear the result is a partial sum, like the layer's own.
    """

    def __init__(self, a: Tensor, b: Tensor, scaling: float, beside: nn.Module, mesh: DeviceMesh | None) -> None:
        super().__init__()
        self.scaling, self.enabled = scaling, True
        self.sum_a: dist.ProcessGroup | None = None
        self.sum_b: dist.ProcessGroup | None = None
        place_a: Replicate | Shard = Replicate()
        place_b: Replicate | Shard = Replicate()
        if mesh is not None and isinstance(beside, ColumnLinear):
            place_b, self.sum_a = Shard(0), mesh.get_group()
        elif mesh is not None and isinstance(beside, RowLinear):
            place_a, self.sum_b = Shard(1), mesh.get_group()
        self.lora_A = _Factor(nn.Parameter(a) if mesh is None else distribute(a, mesh, place_a))
        self.lora_B = _Factor(nn.Parameter(b) if mesh is None else distribute(b, mesh, place_b))
        for factor in (self.lora_A, self.lora_B):
            factor.weight.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        a = copy_to_group(local(self.lora_A.weight), self.sum_a)
        b = copy_to_group(local(self.lora_B.weight), self.sum_b)
        return F.linear(F.linear(x, a), b) * self.scaling


class LoRALinear(nn.Linear):
    """A linear layer that is not split, with an adapter. It shares the original layer's parameters."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.adapter: Adapter | None = None

    def forward(self, input: Tensor) -> Tensor:
        out = F.linear(input, self.weight, self.bias)
        return out + self.adapter(input) if self.adapter is not None and self.adapter.enabled else out


@dataclass(frozen=True)
class AdapterPlan:
    """The linear layers of a whole model that get adapters: name -> (out features, in features), and the settings."""

    layers: Mapping[str, tuple[int, int]]
    settings: LoRASettings

    def shapes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name and full shape of every adapter tensor, in the model's order."""
        for name, (rows, columns) in self.layers.items():
            yield f"{name}.adapter.lora_A.weight", (self.settings.r, columns)
            yield f"{name}.adapter.lora_B.weight", (rows, self.settings.r)


def plan_adapters(model: Any, settings: LoRASettings) -> AdapterPlan:
    """Find the target layers in a whole model (before it is split). Raises ConfigError for names it does not have."""
    head = model.get_output_embeddings()
    linear = {
        name: (int(module.out_features), int(module.in_features))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    last = {name.rpartition(".")[2] for name in linear}
    wanted = set(settings.target_modules)
    every = ALL_LINEAR in wanted
    if not linear or (not every and not wanted <= last):
        missing = ", ".join(sorted(wanted - last))
        problem = f"{model.config.model_type!r} models have no linear layer called {missing}"
        remedy = f"One or more of {', '.join(sorted(last)) or '(none)'}; or {ALL_LINEAR}"
        raise ConfigError([Violation("actor.lora.target_modules", list(settings.target_modules), problem, remedy)])
    fused = _fused_experts(model)
    if every and fused:
        problem = (
            f"{', '.join(fused)} of {model.config.model_type!r} models hold all experts in one tensor each, which "
            "takes no adapter; they would be left out"
        )
        remedy = f"Name the layers: {', '.join(sorted(last))}"
        raise ConfigError([Violation("actor.lora.target_modules", list(settings.target_modules), problem, remedy)])
    chosen = {name: size for name, size in linear.items() if every or name.rpartition(".")[2] in wanted}
    return AdapterPlan(chosen, settings)


def _fused_experts(model: Any) -> list[str]:
    """Last names of the parameters [experts, in, out] of a model."""
    names = {
        f"{name.rpartition('.')[2]}.{own}"
        for name, module in model.named_modules()
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and not isinstance(module, nn.Conv1d)
    }
    return sorted(names)


def attach_adapters(root: Any, plan: AdapterPlan, mesh: DeviceMesh | None, device: torch.device) -> None:
    """Freeze ``root`` and put the planned adapters beside those of its layers on this rank.

    ``mesh`` is the tensor-parallel one, None when layers are whole. A starts as in PEFT (uniform, by layer name, equal
    under every layout), B at zero: at first the model is the base model.
    """
    for parameter in root.parameters():
        parameter.requires_grad_(False)
    settings = plan.settings
    here = dict(root.named_modules())
    for name, (rows, columns) in plan.layers.items():
        if name not in here:
            continue
        layer: Any = here[name]
        if isinstance(layer, nn.Linear):
            layer = LoRALinear(layer)
            parent, _, last = name.rpartition(".")
            setattr(here[parent], last, layer)
        a = _initial(name, settings.r, columns).to(device)
        b = torch.zeros(rows, settings.r, device=device)
        layer.adapter = Adapter(a, b, settings.scaling, layer, mesh)


def _initial(name: str, r: int, columns: int) -> Tensor:
    """kaiming_uniform_(a=sqrt(5)) of [r, columns], which is U(-1, 1) / sqrt(columns)."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return (2 * torch.rand(r, columns, generator=generator) - 1) / math.sqrt(columns)


@contextmanager
def adapters_off(root: nn.Module) -> Iterator[None]:
    """A context in which the model computes as its base model."""
    adapters = [module for module in root.modules() if isinstance(module, Adapter)]
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.enabled = True


def merged(name: str, weight: Tensor, owned: Mapping[str, Tensor], scaling: float) -> Tensor:
    """The full ``weight`` called ``name`` with its adapter, if it has one here, added. Collective like full_tensor."""
    layer = name.removesuffix(".weight")
    a, b = (owned.get(f"{layer}.adapter.lora_{factor}.weight") for factor in "AB")
    if a is None or b is None or layer == name:
        return weight
    return (weight.float() + scaling * (_whole(b) @ _whole(a))).to(weight.dtype)


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def peft_name(name: str) -> str:
    """PEFT's name of an adapter tensor of ours."""
    return f"base_model.model.{name.replace('.adapter.', '.')}"


def write_peft_folder(folder: Path, tensors: Mapping[str, Tensor], plan: AdapterPlan, base: str) -> None:
    """Write full adapter tensors (under our names) as ``adapter_model.safetensors`` and ``adapter_config.json``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    renamed = {peft_name(name): tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    names: Sequence[str] = sorted({name.rpartition(".")[2] for name in plan.layers})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": plan.settings.r,
        "lora_alpha": plan.settings.alpha,
        "target_modules": names,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
