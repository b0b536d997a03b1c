"""A repair of vLLM on CPU: packs new weights of a mixture-of-experts layer for its kernel, like the first weights.

vLLM 0.32 packs weights only when it sets up a layer. It copies later weights unpacked into the packed storage, answers
requests with status 200, and the log-probs are wrong.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod


def repack_reloaded_experts() -> None:
    """Make every later loading of experts in this process pack them. A second call does nothing."""
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
