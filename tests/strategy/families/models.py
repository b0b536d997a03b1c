"""A tiny random model of every family in docs/models.md, and what transformers alone computes with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from torch import Tensor

from tests.strategy.test_compute import transformers_outputs
from tests.strategy.tiny import VOCAB, clipped_loss, tiny_batches

WINDOW = 16  # shorter than most rows of `batches`
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MIXED = ["sliding_attention", "full_attention"]


def sizes(head_dim: int) -> dict[str, Any]:
    width = 4 * head_dim
    return {
        "vocab_size": VOCAB, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, **IDS,
    }  # fmt: skip


def _qwen3_moe(d: int) -> Any:
    moe = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
    return t.Qwen3MoeConfig(head_dim=d, **moe, **sizes(d))


def _qwen3_5(d: int) -> Any:
    linear = {"linear_key_head_dim": d, "linear_value_head_dim": d, "linear_num_key_heads": 2}
    kinds = ["linear_attention", "full_attention"]
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    return t.Qwen3_5TextConfig(
        head_dim=d, layer_types=kinds, linear_num_value_heads=4, rope_parameters=rope, **linear, **sizes(d)
    )


def _gemma3(d: int) -> Any:
    own = {"head_dim": d, "query_pre_attn_scalar": 2 * d, "sliding_window": WINDOW, "layer_types": MIXED}
    return t.Gemma3TextConfig(**own, **sizes(d))


def _gpt_oss(d: int) -> Any:
    own = {"head_dim": d, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW}
    return t.GptOssConfig(layer_types=MIXED, **own, **sizes(d))


def _glm4(d: int) -> Any:
    return t.Glm4Config(head_dim=d, attention_bias=True, **sizes(d))


# The name in the table -> the configuration for heads of a width.
CONFIGS: dict[str, Callable[[int], Any]] = {
    "Qwen2.5": lambda d: t.Qwen2Config(**sizes(d)),
    "Qwen3": lambda d: t.Qwen3Config(head_dim=d, **sizes(d)),
    "Qwen3-MoE": _qwen3_moe,
    "Qwen3.5": _qwen3_5,
    "Llama 3, SmolLM2": lambda d: t.LlamaConfig(**sizes(d)),
    "Mistral": lambda d: t.MistralConfig(sliding_window=WINDOW, **sizes(d)),
    "Gemma 3": _gemma3,
    "GLM-4": _glm4,
    "gpt-oss": _gpt_oss,
    "Phi-3, Phi-4": lambda d: t.Phi3Config(**sizes(d)),
}


def build(name: str, head_dim: int = 8) -> Any:
    """The same weights in every call. Norms, biases and sinks are random too: with 1 or 0 many faults would be
    hidden."""
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(CONFIGS[name](head_dim), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name == "gpt-oss":
                parameter.normal_(0.0, 0.05)
    return model.eval()


def batches(*, packed: bool = True) -> list[Any]:
    return tiny_batches(3, longest=60, seed=3, packed=packed)


def plain(model: Any) -> dict[str, Any]:
    """Loss, gradients and log-probs of transformers and autograd alone, each row by itself."""
    outputs = [transformers_outputs(model, mb) for mb in batches()]
    losses = [clipped_loss(out, mb)[0] for out, mb in zip(outputs, batches(), strict=True)]
    torch.stack(losses).sum().backward()
    gradients: dict[str, Tensor] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    logprobs = [out.logprobs.detach() for out in outputs]
    return {"loss": float(torch.stack(losses).sum()), "gradients": gradients, "logprobs": logprobs}


def furthest(got: list[Tensor], want: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(got, want, strict=True))
