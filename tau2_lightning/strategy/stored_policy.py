"""The policy in a checkpoint as its folder's files hold it, tensor by tensor: no model is built and no rank is started.

Whatever layout wrote a checkpoint, torch's format holds its tensors whole. Of a checkpoint of adapters the base model's
files give the weights, and the adapters are added.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.policy.model_config import read_config
from tau2_lightning.policy.text_part import is_composite, text_config
from tau2_lightning.policy.written import PolicyFiles

from .checkpoint import read_meta
from .checkpoint_reader import read_into, stored_tensors
from .families.registry import family_of
from .hf_files import ModelFiles
from .lora import AdapterPlan, LoRASettings, write_peft_folder
from .weights import as_stored

_READ_BYTES = 1 << 30  # read from a checkpoint at a time
_MODULE = "policy."  # the attribute of the LightningModule
_OPTIMIZER = "optimizer_"
_FACTOR = re.compile(r"(?P<layer>.+)\.adapter\.lora_(?P<factor>[AB])\.weight")


def stored_policy(checkpoint: Path, base: Path, dtype: torch.dtype) -> PolicyFiles:
    """The whole policy of ``checkpoint`` in ``dtype``, with adapters merged; ``base`` is the folder it started from.

    Tensors come when they are asked for, about a gigabyte at a time. Raises ConfigError when the checkpoint holds no
    policy; for adapters also, at the end of the tensors, when they were trained on another base model.
    """
    config = _config(base, dtype)
    meta, stored = read_meta(checkpoint), _Stored(checkpoint)
    if meta.get("lora") is None:
        family = family_of(config)
        named = (
            (name, part)
            for key, full in stored.read(stored.weights)
            for name, part in as_stored(key, full, family.fused if family is not None else None)
        )
        return PolicyFiles(_cast(named, dtype), config, _generation_config(base, config))
    settings, factors = _adapters(meta["lora"], stored)
    merged = _merged(base, config, factors, settings, float(meta["base_norm"]), checkpoint)
    adapter = partial(_write_adapter, factors=factors, settings=settings, base=str(base))
    return PolicyFiles(_cast(merged, dtype), config, _generation_config(base, config), adapter)


def write_adapter(checkpoint: Path, base: Path, folder: Path) -> None:
    """Write the adapters of ``checkpoint`` alone, as PEFT and vLLM read them. Raises ConfigError when it has none."""
    meta, stored = read_meta(checkpoint), _Stored(checkpoint)
    if meta.get("lora") is None:
        remedy = "Leave merge_adapters out: a checkpoint of all weights is exported as a whole"
        raise ConfigError([Violation("merge_adapters", False, f"{checkpoint} holds no adapters", remedy)])
    settings, factors = _adapters(meta["lora"], stored)
    _write_adapter(folder, factors=factors, settings=settings, base=str(base))


class _Stored:
    """The tensors of a checkpoint by the names of the causal LM; those of optimizers are left out."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        entries = stored_tensors(checkpoint, "checkpoint")
        self._entries: dict[str, TensorStorageMetadata] = {
            name.removeprefix(_MODULE): entry
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata) and not name.startswith(_OPTIMIZER)
        }
        self._prefix = _MODULE if any(name.startswith(_MODULE) for name in entries) else ""
        if not self._entries:
            problem = "holds no weights of a policy"
            raise ConfigError(
                [Violation("checkpoint", str(checkpoint), problem, "Give a checkpoint of a training run")]
            )

    @property
    def weights(self) -> list[str]:
        """All names, layers in their order."""
        return sorted(self._entries, key=lambda name: [part.zfill(6) for part in name.split(".")])

    def read(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Full tensors on the CPU, as they were trained."""
        held: dict[str, Tensor] = {}
        for name in names:
            entry = self._entries[name]
            held[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
            if sum(tensor.nbytes for tensor in held.values()) >= _READ_BYTES or name == names[-1]:
                wanted = {self._prefix + one: tensor for one, tensor in held.items()}
                read_into(self.checkpoint, wanted, alone=True)
                yield from held.items()
                held = {}


def _adapters(described: Mapping[str, Any], stored: _Stored) -> tuple[LoRASettings, dict[str, Tensor]]:
    settings = LoRASettings(described["r"], described["alpha"], tuple(described["target_modules"]))
    return settings, dict(stored.read([name for name in stored.weights if _FACTOR.fullmatch(name)]))


def _write_adapter(folder: Path, factors: Mapping[str, Tensor], settings: LoRASettings, base: str) -> None:
    layers = {
        match["layer"]: (len(factors[name.replace("lora_A", "lora_B")]), factor.shape[1])
        for name, factor in factors.items()
        if (match := _FACTOR.fullmatch(name)) and match["factor"] == "A"
    }
    write_peft_folder(folder, factors, AdapterPlan(layers, settings), base)


def _merged(
    base: Path, config: Any, factors: Mapping[str, Tensor], settings: LoRASettings, norm: float, checkpoint: Path
) -> Iterator[tuple[str, Tensor]]:
    """The base model's tensors, those with an adapter plus (alpha / r) B A, in float32."""
    files, squares = ModelFiles(base), 0.0
    if not files.files:
        problem = "holds no *.safetensors files, to which adapters could be added"
        raise ConfigError([Violation("base", str(base), problem, "Give the model that training started from")])
    family = family_of(config)
    tied = family.parts.tied[0] if family is not None and getattr(config, "tie_word_embeddings", False) else ""
    for name in files.of_text_model(composite=is_composite(read_config(base, "base"))):
        if name == tied:
            continue
        full = files.whole(name)
        if full.is_floating_point():
            full = full.float()
            squares += float(full.double().square().sum())
        layer = name.removesuffix(".weight")
        a, b = (factors.get(f"{layer}.adapter.lora_{factor}.weight") for factor in "AB")
        yield name, full if a is None or b is None else full + settings.scaling * (b @ a)
    files.close()
    if abs(math.sqrt(squares) - norm) > 1e-4 * norm:
        problem = f"its adapters were trained on a base model of weight norm {norm:.6g}; {base} has {squares**0.5:.6g}"
        raise ConfigError([Violation("checkpoint", str(checkpoint), problem, "Give that model as base=FOLDER")])


def _cast(tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor


def _config(base: Path, dtype: torch.dtype) -> Any:
    """The configuration of the text model at ``base``, as servers look it up."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    whole = read_config(base, "base")
    config = text_config(whole)
    config.use_cache, config.dtype = True, dtype
    if is_composite(whole):
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    return config


def _generation_config(base: Path, config: Any) -> Any:
    from transformers import GenerationConfig

    if (base / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(str(base))
    return GenerationConfig.from_model_config(config)
