"""The text model of a configuration. Models that also see images or hear keep it inside (``text_config``)."""

from __future__ import annotations

import copy
from typing import Any


def text_config(config: Any) -> Any:
    """The configuration of the text model: ``config`` itself, or a copy of the one inside it.

    ``tie_word_embeddings`` is taken from the whole model, which decides it.
    """
    inner = getattr(config, "text_config", None)
    if inner is None:
        return config
    text = copy.deepcopy(inner)
    tied = getattr(config, "tie_word_embeddings", None)
    if tied is not None:
        text.tie_word_embeddings = tied
    return text


def is_composite(config: Any) -> bool:
    """Whether ``config`` describes more than a text model."""
    return getattr(config, "text_config", None) is not None
