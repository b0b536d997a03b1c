"""The ``config.json`` of a model, read with one clear error whatever it makes transformers raise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tau2_lightning.errors import ConfigError, Violation

from .hub import described
from .text_part import text_config

_SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")
_OPTIONAL = ("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "num_experts")

_built: dict[str, str | None] = {}


def read_config(path: Path | str, key: str = "actor.path") -> Any:
    """The whole transformers configuration at ``path``, without running code of the folder.

    Raises ConfigError, which names ``key``, when transformers cannot read it, when sizes are no numbers, or when the
    hub's model of this id cannot be had.
    """
    folder = described(path, key)
    try:
        config = described_model(folder)
        text = text_config(config)
        sizes = {name: getattr(text, name, None) for name in (*_SIZES, *_OPTIONAL)}
    except Exception as error:  # a configuration can hold anything, and its class can raise anything
        problem = f"its config.json cannot be read ({_reason(error)})"
        remedy = "Give the folder of a model that this version of transformers knows"
        raise ConfigError([Violation(key, str(path), problem, remedy)]) from error
    wrong = {
        name: value
        for name, value in sizes.items()
        if not (_is_size(value) or (name in _OPTIONAL and (value is None or (name == "num_experts" and value == 0))))
    }
    if wrong:
        shown = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        problem = f"its config.json does not describe a language model ({shown})"
        raise ConfigError([Violation(key, str(path), problem, "These must be positive integers")])
    return config


def described_model(folder: Path | str) -> Any:
    """The transformers configuration in ``folder``, whatever reading it raises.

    The attention that it names is forgotten: that is a choice of whoever saved the model, and its package may be
    missing here. Trainer and engine choose their own.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    config._attn_implementation = None
    return config


def unbuildable(config: Any) -> str | None:
    """Why transformers builds no causal language model of the (text) configuration; None where it does.

    The model is built without memory for its weights, once in a process for equal configurations: with a hundred layers
    that takes seconds.
    """
    text = f"{type(config).__name__} {config.to_json_string()}"
    if text not in _built:
        _built[text] = _unbuildable(config)
    return _built[text]


def _unbuildable(config: Any) -> str | None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "it predicts masked words, and agents need a causal language model"
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  # whatever building raises is the configuration's fault
        return f"transformers cannot build the causal language model that config.json describes ({_reason(error)})"
    return None


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _reason(error: Exception) -> str:
    """The name of the error and the first line of its text that says something; with the next, where it announces
    one."""
    lines = [*filter(None, map(str.strip, str(error).splitlines())), "", ""]
    told = f"{lines[0]} {lines[1]}" if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {told[:300].strip()}"
