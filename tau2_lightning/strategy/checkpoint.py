"""Checkpoints as a folder: tensors by name in torch's distributed format, the rest in one file without pickle code.

Tensors are saved under the LightningModule's own (Hugging Face) names, optimizer states under
``optimizer_<i>.<name>.<slot>``. Every rank writes its shards, so any layout can read what any other wrote.
``meta.pt`` is written last and read with ``weights_only=True``; a folder without it is unfinished.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.run_folder import META

from .checkpoint_reader import read_into, stored_tensors
from .lean_adamw import LeanAdamW

# Settings of an optimizer's groups that follow from this run's device, so they are not taken from a checkpoint.
_MACHINERY = frozenset({"fused", "foreach", "capturable"})


def contents(
    tensors: Mapping[str, Tensor],
    optimizers: Sequence[Optimizer],
    names: Mapping[int, str],
    meta: dict[str, Any],
    skip: frozenset[str] = frozenset(),
) -> tuple[dict[str, Any], bytes]:
    """The contents of a checkpoint: tensors by name, and the bytes of ``meta.pt`` with everything else.

    ``names`` maps id(parameter) to its name; ``skip`` names tensors that are stored under another name. Raises
    TypeError when ``meta`` holds something that could not be read back safely.
    """
    state: dict[str, Any] = {name: tensor.detach() for name, tensor in tensors.items() if name not in skip}
    scalars: list[dict[str, Any]] = []
    for index, optimizer in enumerate(optimizers):
        slots, plain = _optimizer_state(index, optimizer, names)
        state |= {key: value for key, value in slots.items() if not any(f".{name}." in key for name in skip)}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        scalars.append({"groups": groups, "state": plain, "format": _format(optimizer)})
    return state, _safe_bytes({**meta, "optimizers": scalars})


def read_meta(folder: Path) -> dict[str, Any]:
    """Everything but tensors. Raises ConfigError when the folder is missing or unfinished."""
    if not (folder / META).is_file():
        problem = "no finished checkpoint there"
        raise ConfigError([Violation("ckpt_path", str(folder), problem, "Give a folder that holds meta.pt")])
    meta: dict[str, Any] = torch.load(folder / META, weights_only=True, map_location="cpu")
    return meta


def load(
    folder: Path,
    tensors: Mapping[str, Tensor],
    optimizers: Sequence[Optimizer],
    names: Mapping[int, str],
    model: Mapping[str, Any],
    *,
    alias: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read a checkpoint into live tensors and optimizers, whatever layout wrote it, and return its meta. Collective.

    ``model`` describes the model here; ``alias`` maps names here to the names they are stored under (a tied head).
    Raises ConfigError, naming both models, when the checkpoint is of another one.
    """
    meta = read_meta(folder)
    stored = stored_tensors(folder)
    alias = alias or {}
    _check_model(folder, meta.get("model", {}), model, tensors, stored, alias)
    _read_into(folder, [(alias.get(name, name), tensor) for name, tensor in tensors.items()])
    saved = meta.get("optimizers", [])
    if optimizers and saved:
        if len(saved) != len(optimizers):
            problem = f"holds {len(saved)} optimizers, here are {len(optimizers)}"
            raise ConfigError([Violation("ckpt_path", str(folder), problem, "Resume with the same module")])
        for index, (optimizer, content) in enumerate(zip(optimizers, saved, strict=True)):
            _load_optimizer(folder, index, optimizer, content, names, stored, alias)
    return meta


def check_adapters(folder: Path, lora: Mapping[str, Any] | None, base_norm: Callable[[], float]) -> None:
    """Raise ConfigError when the checkpoint's adapters are of another shape, or were trained on another base model.

    ``lora`` describes the adapters here, None without. ``base_norm`` is the Euclidean norm of the frozen weights,
    called only when needed: every weight counts in it, and no layout changes it beyond rounding.
    """
    meta = read_meta(folder)
    theirs = meta.get("lora")
    if theirs != lora:
        problem = f"holds {adapters_in_words(theirs)}, but here are {adapters_in_words(lora)}"
        raise ConfigError([Violation("ckpt_path", str(folder), problem, "Resume with the same actor.lora")])
    if lora is not None:
        there, here = float(meta["base_norm"]), base_norm()
        if abs(there - here) > 1e-5 * there:
            problem = f"its adapters were trained on a base model of weight norm {there:.6g}, not {here:.6g}"
            raise ConfigError([Violation("ckpt_path", str(folder), problem, "Give that model as actor.path")])


def adapters_in_words(lora: Mapping[str, Any] | None) -> str:
    """Adapters as a checkpoint describes them, as text."""
    if lora is None:
        return "no adapters"
    return "adapters of " + " ".join(f"{key}={value}" for key, value in lora.items())


def _optimizer_state(
    index: int, optimizer: Optimizer, names: Mapping[int, str]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, slots in optimizer.state.items():
        name = names[id(parameter)]
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer_{index}.{name}.{slot}"] = value.detach()
            else:
                plain.setdefault(name, {})[slot] = value
    return tensors, plain


def _load_optimizer(
    folder: Path,
    index: int,
    optimizer: Optimizer,
    content: Mapping[str, Any],
    names: Mapping[int, str],
    stored: Mapping[str, Any],
    alias: Mapping[str, str],
) -> None:
    if len(content["groups"]) != len(optimizer.param_groups):
        problem = f"{len(content['groups'])} parameter groups, here are {len(optimizer.param_groups)}"
        raise ConfigError([Violation("ckpt_path", str(folder), problem, "Resume with the same optimizer")])
    theirs, ours = content.get("format", "float32"), _format(optimizer)
    if theirs != ours:
        problem = f"keeps moments in {theirs}, but the optimizer here in {ours}"
        raise ConfigError([Violation("ckpt_path", str(folder), problem, "Resume with the same actor.optimizer.type")])
    for group, saved in zip(optimizer.param_groups, content["groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key not in _MACHINERY})
    wanted: list[tuple[str, Tensor]] = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            name = alias.get(name, name)
            prefix = f"optimizer_{index}.{name}."
            state = dict(content["state"].get(name, {}))
            made = optimizer.empty_state(parameter) if isinstance(optimizer, LeanAdamW) else {}
            for key, entry in stored.items():
                if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata):
                    slot = made.get(key.removeprefix(prefix))
                    if slot is None:
                        slot = _slot_like(parameter, entry, fused=bool(group.get("fused") or group.get("capturable")))
                    elif slot.shape != entry.size:
                        problem = (
                            f"has {key} in blocks of another layout: {tuple(entry.size)}, here {tuple(slot.shape)}"
                        )
                        remedy = "Resume with the allocation_mode that it was written with"
                        raise ConfigError([Violation("ckpt_path", str(folder), problem, remedy)])
                    state[key.removeprefix(prefix)] = slot
                    wanted.append((key, slot))
            if state:
                optimizer.state[parameter] = state
    _read_into(folder, wanted)


def _format(optimizer: Optimizer) -> str:
    """In which format the moments are."""
    return str(getattr(optimizer, "state_format", "float32"))


def _slot_like(parameter: Tensor, entry: TensorStorageMetadata, *, fused: bool) -> Tensor:
    """Memory for a slot of a parameter's optimizer state. Fused optimizers count steps on the parameter's device."""
    if entry.size == parameter.shape:
        return torch.zeros_like(parameter.detach(), dtype=entry.properties.dtype)
    return torch.zeros(entry.size, dtype=entry.properties.dtype, device=parameter.device if fused else "cpu")


def _read_into(folder: Path, wanted: Sequence[tuple[str, Tensor]]) -> None:
    # One name may be wanted once only per read; the calls must also be equally many on every rank.
    with torch.no_grad():
        read_into(folder, {name: tensor.detach() for name, tensor in wanted})


def _check_model(
    folder: Path,
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    stored: Mapping[str, Any],
    alias: Mapping[str, str],
) -> None:
    wrong = []
    for name, tensor in tensors.items():
        entry = stored.get(alias.get(name, name))
        if entry is None or tuple(entry.size) != tuple(tensor.shape):
            wrong.append(f"{name} {tuple(tensor.shape)} here, {tuple(entry.size) if entry else 'absent'} there")
    if wrong or (theirs and dict(theirs) != dict(ours)):
        problem = f"holds {describe(theirs)}, but the model here is {describe(ours)}"
        detail = f" ({wrong[0]})" if wrong else ""
        raise ConfigError(
            [Violation("ckpt_path", str(folder), problem + detail, "Resume with the model it was made of")]
        )


def rng_state() -> dict[str, Any]:
    """Random state of torch, numpy and Python in this process, as plain values."""
    state: Any = np.random.get_state()
    name, keys, *rest = state
    return {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": [name, keys.tolist(), *rest]}


def restore_rng(state: Mapping[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def describe(model: Mapping[str, Any]) -> str:
    """A model's fingerprint as text."""
    return " ".join(f"{key}={value}" for key, value in model.items()) or "an unknown model"


def fingerprint(config: Any) -> dict[str, Any]:
    """What must be equal for weights to fit: the family and the sizes."""
    sizes = "num_hidden_layers hidden_size intermediate_size num_attention_heads num_key_value_heads vocab_size"
    keys = ["model_type", *sizes.split(), "num_experts", "tie_word_embeddings"]
    return {key: getattr(config, key) for key in keys if hasattr(config, key)}


def _safe_bytes(meta: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(meta), buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except Exception as error:
        culprits = [key for key, value in meta.items() if not _loads_safely(value)]
        raise TypeError(f"checkpoint entries {culprits} hold objects that weights_only loading refuses") from error
    return buffer.getvalue()


def _loads_safely(value: Any) -> bool:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except Exception:  # noqa: BLE001  any refusal is the answer
        return False
    return True


def barrier() -> None:
    """Wait for every process, where there are several."""
    if dist.is_initialized():
        dist.barrier()
