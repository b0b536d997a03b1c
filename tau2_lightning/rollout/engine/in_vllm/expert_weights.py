"""A repair of vLLM on CPU: new weights of a mixture-of-experts layer are packed for its kernel, as the first ones were.

vLLM 0.32 packs them only when a layer is set up. Later weights are copied unpacked into the packed storage, and the
engine answers 200 with the log-probs of no model at all.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod


def repack_reloaded_experts() -> None:
    """Let every later loading of experts pack them, in this process. Does nothing when called again."""
    set_up = UnquantizedFusedMoEMethod._setup_kernel
    if hasattr(set_up, "__wrapped__"):
        return

    def set_up_and_pack(method: Any, layer: Any, w13: Any, w2: Any) -> None:
        later = method.moe_kernel is not None
        set_up(method, layer, w13, w2)
        if later:
            method.moe_kernel.fused_experts.process_weights_after_loading(layer)

    set_up_and_pack.__wrapped__ = set_up  # type: ignore[attr-defined]
    UnquantizedFusedMoEMethod._setup_kernel = set_up_and_pack
