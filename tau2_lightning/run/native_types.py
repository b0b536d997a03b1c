"""``auto`` as data type and precision: bfloat16 where this machine multiplies it in hardware, else float32.

Processors without AVX-512 (or its like) take bfloat16 matrix products one by one: on an AVX2 processor torch 2.13 makes
them 5 to 24 times slower than in float32 (`benchmarks/bfloat16.py`), and a training step of SmolLM2-135M takes a
quarter of an hour.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.launch.devices import device_count

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


def types_in_words(config: RunConfig) -> str:
    """In what the policy is computed, and why ``auto`` would choose so."""
    fast = multiplies_bfloat16(config.model_dump(include={"trainer", "cluster", "scheduler"}))
    how = "in hardware, so auto is bfloat16" if fast else "in software, so auto is float32"
    return f"engine in {config.actor.dtype}, trainer in {config.actor.precision} (bfloat16 is computed {how})"


def multiplies_bfloat16(raw: dict[str, Any]) -> bool:
    """Whether the devices that ``trainer.accelerator`` chooses, here or as ``cluster`` describes them, have bfloat16
    matrix products in hardware."""
    gpus = _value(raw, "cluster", "n_gpus_per_node")
    if _value(raw, "trainer", "accelerator") == "cpu" or gpus == 0:
        return cpu_multiplies_bfloat16()
    # Of a cluster that a job is submitted to, nodes have the GPUs that the allocation needs.
    described = bool(gpus or _value(raw, "cluster", "gpu_memory_gib"))
    submitted = _value(raw, "scheduler", "type") in ("slurm", "ray")
    return described or submitted or gpus_are_here() or cpu_multiplies_bfloat16()


def _value(raw: dict[str, Any], section: str, key: str) -> Any:
    values = raw.get(section)
    return values.get(key) if isinstance(values, dict) else None


def gpus_are_here() -> bool:
    """Whether torch sees a GPU on this machine."""
    return device_count() > 0


def cpu_multiplies_bfloat16() -> bool:
    """Whether torch's CPU kernels for bfloat16 matrix products are as fast as those for float32, or faster.

    On Linux on x86 the processor's flags say it: torch, which says the same, takes seconds to import.
    """
    flags = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and flags.is_file() and "ONEDNN_MAX_CPU_ISA" not in os.environ:
        words = set(flags.read_text().split())
        return words >= {"avx512bw", "avx512vl", "avx512dq"} or "avx_ne_convert" in words
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def slow_types(raw: dict[str, Any]) -> Iterator[str]:
    """The keys that ask for bfloat16 where it is slow, with their values: ``actor.dtype=bfloat16``."""
    if not multiplies_bfloat16(raw):
        for (section, key), (fast, _) in _CHOICES.items():
            if raw.get(section, {}).get(key) == fast:
                yield f"{section}.{key}={fast}"
