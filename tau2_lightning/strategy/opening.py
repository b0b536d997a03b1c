"""A causal LM from a folder: whole, or without memory for its weights until they are split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tau2_lightning.errors import ConfigError, Violation

from .families.registry import family_of
from .hf_files import ModelFiles, ShardedLoader, covers, meta_model
from .mesh import Mesh


def load_causal_lm(source: str | Path | nn.Module) -> Any:
    """A transformers causal LM in float32 from a Hugging Face folder, or ``source`` itself when already built.

    Raises ConfigError when the folder is missing.
    """
    if isinstance(source, nn.Module):
        model: Any = source
    else:
        from transformers import AutoModelForCausalLM

        if not (Path(source) / "config.json").is_file():
            raise ConfigError([Violation("actor.path", str(source), "no config.json there", "Give a model folder")])
        model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    return model


def open_model(source: str | Path | nn.Module, mesh: Mesh) -> tuple[Any, ShardedLoader | None]:
    """A causal LM, and its loader when it has no memory yet: each process reads only what it keeps.

    Folders that sharded reading does not support (unknown families, other file formats, other tensor names) are loaded
    whole by transformers. Raises ConfigError when the folder is missing.
    """
    if isinstance(source, nn.Module) or mesh.device_mesh is None or not (Path(source) / "config.json").is_file():
        return load_causal_lm(source), None
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(str(source))
    family = family_of(config)
    if family is None:
        return load_causal_lm(source), None
    files = ModelFiles(Path(source))
    model = meta_model(config, family.parts, mesh.device)
    if not covers(files, model, family):
        files.close()
        return load_causal_lm(source), None
    if (Path(source) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(source))
    model.config.use_cache = False
    return model, ShardedLoader(files, family, mesh.device)
