"""The keys of AReaL's section ``actor.megatron``: some say how megatron-core computes, others what it computes.

Keys of the first kind are accepted and have no effect, so that a configuration need not be changed. Keys of the second
kind are accepted if their value is what archon computes, and refused otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tau2_lightning.errors import Violation

# Keys that may have any value, with the reason why they change no result by more than rounding.
_TIME = "time only: when communication and computation overlap"
_MEMORY = "memory only: actor.activation_checkpointing decides what is computed again"
_SHARDED = "memory only: parameters and optimizer states are always sharded, by FSDP2"
_ROUTE = "how tokens travel to their experts; none is dropped"
_FILES = "how megatron's weights are read and written; Hugging Face folders and this project's checkpoints are used"
_KERNEL = "which kernel computes the same formula"
HARMLESS: dict[str, str] = {
    "use_torch_fsdp2": _SHARDED,
    "use_custom_fsdp": _SHARDED,
    "ddp.use_distributed_optimizer": _SHARDED,
    "ddp.overlap_grad_reduce": _TIME,
    "ddp.overlap_param_gather": _TIME,
    "ddp.align_param_gather": _TIME,
    "ddp.bucket_size": _TIME,
    "ddp.average_in_collective": "another order of sums; here the loss is divided by global token counts",
    "ddp.check_for_nan_in_grad": "a gradient norm that is not finite always stops the run",
    "overlap_param_gather_with_optimizer_step": _TIME,
    "use_precision_aware_optimizer": "matters only for dtypes other than float32, which other keys set",
    "gradient_accumulation_fusion": "sums into the same float32 gradient",
    "sequence_parallel": "norms and residuals are always split under t",
    "use_deterministic_algorithms": "rounding only: the order of sums",
    "recompute_granularity": _MEMORY,
    "recompute_method": _MEMORY,
    "recompute_num_layers": _MEMORY,
    "recompute_modules": _MEMORY,
    "distribute_saved_activations": _MEMORY,
    "moe_token_dispatcher_type": _ROUTE,
    "moe_enable_deepep": _ROUTE,
    "moe_permute_fusion": _KERNEL,
    "moe_grouped_gemm": _KERNEL,
    "moe_shared_expert_overlap": _TIME,
    "apply_rope_fusion": _KERNEL,
    "masked_softmax_fusion": _KERNEL,
    "bias_activation_fusion": _KERNEL,
    "async_save": "when a checkpoint is written; trainer.async_save decides it here",
    "use_checkpoint_opt_param_scheduler": "concerns a resume from megatron's own checkpoints",
    "bridge_type": _FILES,
    "use_mbridge_save": _FILES,
}
# Keys that change results: the accepted values, and what archon computes.
_FLOAT32 = "parameters, gradients and optimizer states are kept in float32"
_NO_AUX = "the loss is the policy's alone; the trainer adds no loss that balances experts"
COMPUTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "wrap_with_ddp": ((True,), "gradients are always summed over data ranks"),
    "ddp.grad_reduce_in_fp32": ((True,), "gradients are summed in float32"),
    "ddp.fp8_param_gather": ((False, None), "nothing is computed in fp8"),
    "virtual_pipeline_parallel_size": ((1, None), "actor.schedule=Interleaved1F1B gives each rank two stages"),
    "main_grads_dtype": (("float32",), _FLOAT32),
    "main_params_dtype": (("float32",), _FLOAT32),
    "exp_avg_dtype": (("float32",), _FLOAT32),
    "exp_avg_sq_dtype": (("float32",), _FLOAT32),
    "fp8_config": ((None,), "nothing is computed in fp8"),
    "moe_router_dtype": (
        (None,),
        "the router's product is computed in actor.precision and its softmax in float32, as in the engine; another "
        "precision would send tokens to other experts than the engine did",
    ),
    "moe_aux_loss_coeff": ((0, 0.0, None), _NO_AUX),
    "moe_z_loss_coeff": ((0, 0.0, None), _NO_AUX),
    "moe_router_load_balancing_type": (("none", None), _NO_AUX),
    "moe_router_enable_expert_bias": ((False, None), "the router chooses by its logits alone"),
    "moe_input_jitter_eps": ((0, 0.0, None), "the router sees its input without noise"),
    "moe_expert_capacity_factor": ((None,), "no token is dropped, however many choose one expert"),
    "moe_pad_expert_input_to_capacity": ((False, None), "experts have no capacity"),
    "attention_dropout": ((0, 0.0), "nothing is dropped out while a policy is trained"),
    "hidden_dropout": ((0, 0.0), "nothing is dropped out while a policy is trained"),
}


def megatron_keys(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of the section with their values; a key of its subsection ``ddp`` is called ``ddp.<key>``."""
    for name, value in section.items():
        if name == "ddp" and isinstance(value, Mapping):
            yield from megatron_keys(value, "ddp.")
        else:
            yield f"{prefix}{name}", value


def refused_keys(section: Mapping[str, Any]) -> Iterator[Violation]:
    """One violation for each key that asks for something else than archon computes, and for each unknown key."""
    for name, value in megatron_keys(section):
        key = f"actor.megatron.{name}"
        if name in HARMLESS:
            continue
        if name not in COMPUTED:
            yield Violation(key, value, "is not known here, so it may change what is computed", "Leave it out")
            continue
        allowed, computed = COMPUTED[name]
        if not any(type(value) is type(one) and value == one for one in allowed):
            shown = " or ".join("null" if one is None else str(one).lower() for one in dict.fromkeys(allowed))
            yield Violation(key, value, f"is not what archon computes: {computed}", f"Leave it out, or set {shown}")


def idle_keys(section: Mapping[str, Any]) -> list[str]:
    """The accepted keys that have no effect, sorted."""
    return sorted(name for name, _ in megatron_keys(section) if name in HARMLESS)
