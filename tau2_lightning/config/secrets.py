"""A configuration without its secrets, for files, loggers and the screen."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from .schema import SECRETS, RunConfig

HIDDEN = "***"
SHORTEST_SECRET = 8  # shorter texts would be found in ordinary words
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
_SECRET_NAME = re.compile(
    r"(^|[_-]|api|access|auth|private)(key|token|secret|password|passwd|credentials?|authorization|cookie)$", re.I
)


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


def is_secret_word(word: str) -> bool:
    """Whether the word of a command line gives a value that is never shown, or names one inside its value:
    ``{api_key: ...``."""
    return is_secret(word.partition("=")[0].lstrip("+~")) or names_a_secret(word)


def shown_secrets(words: Sequence[str]) -> list[str]:
    """The keys of ``words`` whose secret is in the word itself, and not in a variable or file that it refers to."""
    return [
        key.lstrip("+~")
        for key, equals, value in (word.partition("=") for word in words if is_secret_word(word))
        if equals and value not in ("", "null") and "${" not in value
    ]


def flag_with_secret(argument: str) -> str | None:
    """The flag in an argument of a program, ``--hf-token=X`` or ``--hf-token``, whose value is a secret; else None."""
    name = argument.partition("=")[0]
    named = name.lstrip("-").replace("-", "_")
    return name if name.startswith("-") and _SECRET_NAME.search(named) else None


def has_credentials(url: str) -> bool:
    """Whether a URL holds a user's name or password, or a parameter that is named like a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "@" in url
    return "@" in parts.netloc or names_a_secret(parts.query)


def environment_secrets(environment: Mapping[str, str]) -> set[str]:
    """The values of the variables that are named like a secret."""
    return {value for key, value in environment.items() if _SECRET_NAME.search(key) and len(value) >= SHORTEST_SECRET}


def without_secrets(config: RunConfig) -> dict[str, Any]:
    """``config`` as JSON-able data. Secret keys of the schema are left out; those in open mappings are ``***``. So is a
    secret of the environment in any other value, where an interpolation has brought it."""
    shown: dict[str, Any] = masked("", config.model_dump(mode="json", exclude=SECRETS))
    found = environment_secrets(os.environ)
    if found:
        shown = _replaced(shown, found)
    return shown


def masked(key: str, value: Any) -> Any:
    """``value`` of the dotted ``key`` (empty: the whole configuration) with every secret in it replaced by ``***``."""
    if value is not None and is_secret(key):
        return HIDDEN
    if isinstance(value, str):
        return _without_credentials(value)
    if isinstance(value, dict):
        return {name: masked(f"{key}.{name}" if key else str(name), item) for name, item in value.items()}
    if isinstance(value, list):
        return [masked(f"{key}.{number}", item) for number, item in enumerate(value)]
    return value


def secret_values(config: RunConfig) -> tuple[str, ...]:
    """Every secret that the run knows as text: those of ``config``, and those in the environment named like one.

    For texts that somebody else wrote, such as the message of a fault, in which a secret may be quoted. Values of fewer
    than `SHORTEST_SECRET` characters are left out.
    """
    found = environment_secrets(os.environ) | secrets_in(config.model_dump(mode="json"))
    return tuple(sorted((one for one in found if len(one) >= SHORTEST_SECRET), key=len, reverse=True))


def secrets_in(configuration: Mapping[str, Any]) -> set[str]:
    """The texts under the secret keys of a configuration, which may not have been checked yet."""
    found: set[str] = set()
    stack: list[tuple[str, Any]] = [("", configuration)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
        elif isinstance(value, list):
            stack += [(f"{key}.{number}", item) for number, item in enumerate(value)]
        elif isinstance(value, str) and is_secret(key):
            found.add(value)
    return found


def _replaced(value: Any, found: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(item, found) for name, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, found) for item in value]
    if isinstance(value, str):
        for secret in found:
            value = value.replace(secret, HIDDEN)
    return value


def _without_credentials(text: str) -> str:
    """A URL or a flag without its secret; any other text as it is."""
    if "://" in text and has_credentials(text):
        scheme, _, rest = text.partition("://")
        return f"{scheme}://{HIDDEN}@{rest.rpartition('@')[2].partition('?')[0]}"
    if "=" in text and (flag := flag_with_secret(text)) is not None:
        return f"{flag}={HIDDEN}"
    return text
