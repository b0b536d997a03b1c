"""A causal LM from a folder: whole, or without memory for its weights until they are split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.policy.model_config import described_model
from tau2_lightning.policy.text_part import is_composite, text_config

from .families.registry import family_of
from .fitting import untrainable
from .hf_files import ModelFiles, ShardedLoader, meta_model, missing
from .mesh import Mesh


def load_causal_lm(source: str | Path | nn.Module) -> Any:
    """A transformers causal LM in float32 from a Hugging Face folder, or ``source`` itself when already built.

    Raises ConfigError when the folder is missing.
    """
    if isinstance(source, nn.Module):
        model: Any = source
    else:
        from transformers import AutoModelForCausalLM

        _check_folder(source)
        model = AutoModelForCausalLM.from_pretrained(
            str(source), config=described_model(source), dtype=torch.float32, trust_remote_code=False
        )
    model.config.use_cache = False
    return model


def open_model(source: str | Path | nn.Module, mesh: Mesh) -> tuple[Any, ShardedLoader | None]:
    """A causal LM, and its loader when it has no memory yet: each process reads only what it keeps.

    Folders that sharded reading does not support (unknown families, other file formats, other tensor names) are loaded
    whole by transformers. Of a model that holds a text model inside, the text model is opened. Raises ConfigError when
    the folder is missing, and for models that cannot be trained.
    """
    if isinstance(source, nn.Module):
        return load_causal_lm(source), None
    from transformers import GenerationConfig

    _check_folder(source)
    config = described_model(source)
    if (violation := untrainable(config, str(source))) is not None:
        raise ConfigError([violation])
    text = text_config(config)
    family = family_of(text)
    if family is None or (mesh.device_mesh is None and not is_composite(config)):
        return load_causal_lm(source), None
    files = ModelFiles(Path(source))
    model = meta_model(text, family.parts, mesh.device)
    model.config.architectures = [type(model).__name__]  # an export of the text model alone is served by this name
    lacking = missing(files, model, family)
    if lacking is not None:
        files.close()
        if is_composite(config):
            problem = f"holds no weights called {lacking}, a part of its text model"
            raise ConfigError([Violation("actor.path", str(source), problem, "Give a folder with *.safetensors files")])
        return load_causal_lm(source), None
    if (Path(source) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(source))
    model.config.use_cache = False
    return model, ShardedLoader(files, family, mesh.device)


def _check_folder(source: str | Path) -> None:
    if not (Path(source) / "config.json").is_file():
        raise ConfigError([Violation("actor.path", str(source), "no config.json there", "Give a model folder")])


def narrow_parameters(model: nn.Module) -> None:
    """Turn the parameters of ``model`` into bfloat16, in place, whether they have memory or not. Buffers stay."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)
