"""Folders that only describe a model: the config.json of published ones, without weights or a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_DENSE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "head_dim": 128,
    "num_key_value_heads": 8, "max_position_embeddings": 40960, "rope_theta": 1000000, "rms_norm_eps": 1e-06,
    "hidden_act": "silu", "attention_bias": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def _dense(hidden: int, inner: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**_DENSE, **sizes, "num_attention_heads": heads, "tie_word_embeddings": tied}


MODELS = {
    "qwen3-1.7b": _dense(2048, 6144, 28, 16, tied=True),
    "qwen3-4b": _dense(2560, 9728, 36, 32, tied=True),
    "qwen3-8b": _dense(4096, 12288, 36, 32, tied=False),
    "qwen3-30b-a3b": {
        **_dense(2048, 6144, 48, 32, tied=False), "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "router_aux_loss_coef": 0.001,
    },
}  # fmt: skip


def described(folder: Path, name: str) -> Path:
    """A new folder in ``folder`` with the config.json of the model ``name`` and nothing else."""
    made = folder / name
    made.mkdir()
    (made / "config.json").write_text(json.dumps(MODELS[name]))
    return made
