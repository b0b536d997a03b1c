"""The chat template of an evaluation, as its stamp names it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from tau2_lightning.environment import identity as world
from tau2_lightning.errors import ConfigError
from tau2_lightning.policy.loading import load_tokenizer


@lru_cache(maxsize=4)
def template_digest(policy: Path, given: str | None) -> str:
    """A digest of the chat template that prompts are rendered with: ``given`` (`actor.chat_template`), or else that of
    the tokenizer at ``policy``. Equal texts have equal digests, whatever file they are in. ``-`` where the tokenizer
    cannot be read.
    """
    try:
        source = load_tokenizer(policy, given).chat_template
    except ConfigError:
        return "-"
    if isinstance(source, Mapping):  # of several, the one for tools is used
        source = source.get("tool_use") or source.get("default")
    return world.digest(str(source).strip())
