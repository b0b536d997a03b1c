"""``auto`` as data type and precision: bfloat16 where this machine multiplies it in hardware, else float32.

Processors without AVX-512 (or its like) take bfloat16 matrix products one by one: on an AVX2 processor torch 2.13 makes
them 5 to 24 times slower than in float32 (`benchmarks/bfloat16.py`), and a training step of SmolLM2-135M takes a
quarter of an hour.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

AUTO = "auto"
_CHOICES = {("actor", "dtype"): ("bfloat16", "float32"), ("actor", "precision"): ("bf16", "fp32")}
_CHOICES |= {("warm_start", "precision"): ("bf16", "fp32")}


def with_native_types(raw: dict[str, Any]) -> dict[str, Any]:
    """``raw`` with what the machine computes well in the place of ``auto``. A composed configuration, not yet typed."""
    result = dict(raw)
    for (section, key), (fast, plain) in _CHOICES.items():
        values = result.get(section)
        if isinstance(values, dict) and values.get(key) == AUTO:
            result[section] = values | {key: fast if multiplies_bfloat16(raw) else plain}
    return result


def multiplies_bfloat16(raw: dict[str, Any]) -> bool:
    """Whether the devices that ``trainer.accelerator`` chooses, here or as ``cluster`` describes them, have bfloat16
    matrix products in hardware."""
    trainer, cluster = raw.get("trainer"), raw.get("cluster")
    accelerator = trainer.get("accelerator") if isinstance(trainer, dict) else AUTO
    described = isinstance(cluster, dict) and bool(cluster.get("n_gpus_per_node") or cluster.get("gpu_memory_gib"))
    on_gpus = accelerator != "cpu" and (described or gpus_are_here())
    return on_gpus or cpu_multiplies_bfloat16()


def gpus_are_here() -> bool:
    """Whether torch sees a GPU on this machine."""
    import torch  # here: the help of a command composes, and must not wait for torch

    return torch.cuda.is_available()


def cpu_multiplies_bfloat16() -> bool:
    """Whether torch's CPU kernels for bfloat16 matrix products are as fast as those for float32, or faster."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def slow_types(raw: dict[str, Any]) -> Iterator[str]:
    """The keys that ask for bfloat16 where it is slow, with their values: ``actor.dtype=bfloat16``."""
    if not multiplies_bfloat16(raw):
        for (section, key), (fast, _) in _CHOICES.items():
            if raw.get(section, {}).get(key) == fast:
                yield f"{section}.{key}={fast}"
