"""A configuration without its secrets, for files, loggers and the screen."""

from __future__ import annotations

import os
import re
from typing import Any

from .schema import SECRETS, RunConfig

HIDDEN = "***"
# Mappings with the user's own keys: a key that is named like a secret holds one.
OPEN_MAPPINGS = (
    "callbacks",
    "logger",
    "gconfig.chat_template_kwargs",
    "econfig.user_llm_args",
    "econfig.judge_llm_args",
    "rollout.workflow",
    "scheduler.slurm",
    "actor.megatron",
)
_OF_A_DOMAIN = re.compile(r"^domains\.[^.]+\.(?=econfig\.)")  # its keys are those of the section econfig
# Also names of HTTP headers, as in extra_headers: Authorization, x-api-key.
_SECRET_NAME = re.compile(r"(^|[_-])(key|token|secret|password|credentials?|authorization|cookie)$", re.I)


def is_secret(key: str) -> bool:
    """Whether the value of the dotted ``key`` is never shown."""
    key = _OF_A_DOMAIN.sub("", key)
    section, _, rest = key.partition(".")
    if rest in SECRETS.get(section, ()):
        return True
    return key.startswith(tuple(f"{one}." for one in OPEN_MAPPINGS)) and bool(
        _SECRET_NAME.search(key.rpartition(".")[2])
    )


def names_a_secret(text: str) -> bool:
    """Whether ``text`` gives a value to a key that is named like a secret, in whatever notation."""
    names = re.findall(r"([\w.-]+)[\"']?\s*[:=]", text)
    return any(_SECRET_NAME.search(name.rpartition(".")[2]) for name in names)


def without_secrets(config: RunConfig) -> dict[str, Any]:
    """``config`` as JSON-able data. Secret keys of the schema are left out; those in open mappings are ``***``."""
    shown: dict[str, Any] = masked("", config.model_dump(mode="json", exclude=SECRETS))
    return shown


def masked(key: str, value: Any) -> Any:
    """``value`` of the dotted ``key`` (empty: the whole configuration) with every secret in it replaced by ``***``."""
    if value is not None and is_secret(key):
        return HIDDEN
    if isinstance(value, dict):
        return {name: masked(f"{key}.{name}" if key else str(name), item) for name, item in value.items()}
    if isinstance(value, list):
        return [masked(f"{key}.{number}", item) for number, item in enumerate(value)]
    return value


def secret_values(config: RunConfig) -> tuple[str, ...]:
    """Every secret that the run knows as text: those of ``config``, and those in the environment named like one.

    For texts that somebody else wrote, such as the message of a fault, in which a secret may be quoted. Values of fewer
    than eight characters are left out: they would be found in ordinary words.
    """
    found = {value for key, value in os.environ.items() if _SECRET_NAME.search(key)}
    stack: list[tuple[str, Any]] = [("", config.model_dump(mode="json"))]
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
        elif isinstance(value, list):
            stack += [(f"{key}.{number}", item) for number, item in enumerate(value)]
        elif isinstance(value, str) and is_secret(key):
            found.add(value)
    return tuple(sorted((one for one in found if len(one) >= 8), key=len, reverse=True))
