"""A configuration without its secrets, for files, loggers and the screen."""

from __future__ import annotations

import re
from typing import Any

from .schema import SECRETS, RunConfig

# Sections with the user's own entries, whose keys are not known in advance.
OPEN_SECTIONS = ("callbacks", "logger")
_SECRET_NAME = re.compile(r"(^|_)(key|token|secret|password|credentials?)$", re.I)


def is_secret(key: str) -> bool:
    """Whether the value of the dotted ``key`` is never shown."""
    section, _, rest = key.partition(".")
    return rest in SECRETS.get(section, ()) or (section in OPEN_SECTIONS and masked_value(rest.split(".")[-1], 1) != 1)


def without_secrets(config: RunConfig) -> dict[str, Any]:
    """``config`` as JSON-able data. Secret keys are left out; those of callbacks and loggers are ``***``."""
    return mask_open_sections(config.model_dump(mode="json", exclude=SECRETS))


def mask_open_sections(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` with the values in its open sections masked that belong to a key named like a secret."""
    return config | {section: masked_value(section, config[section]) for section in OPEN_SECTIONS if section in config}


def masked_value(key: str, value: Any) -> Any:
    """``value``, or ``***`` where ``key`` or a key within it is named like a secret."""
    if value is not None and _SECRET_NAME.search(key):
        return "***"
    if isinstance(value, list):
        return [masked_value("", item) for item in value]
    if isinstance(value, dict):
        return {name: masked_value(str(name), item) for name, item in value.items()}
    return value
