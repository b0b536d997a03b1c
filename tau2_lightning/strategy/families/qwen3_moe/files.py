"""How Qwen3-MoE's experts are stored: one tensor per expert and projection, where the model has them fused."""

from __future__ import annotations

import re

_FUSED = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)$")


def fused(name: str, index: int) -> tuple[str, ...]:
    """`Family.fused`: the file's tensors that are expert ``index`` of the parameter called ``name``."""
    match = _FUSED.match(name)
    if match is None:
        return ()
    experts, part = match.groups()
    halves = ("gate_proj", "up_proj") if part == "gate_up_proj" else ("down_proj",)
    return tuple(f"{experts}.{index}.{half}.weight" for half in halves)
