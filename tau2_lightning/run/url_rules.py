"""Rules for the keys that hold URLs of servers: each can be called, and holds no secret."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import has_credentials, masked
from tau2_lightning.errors import Violation

# The key that holds the secret of the server whose URL another key holds.
_KEYS = {
    "engine_urls": "engine_api_key",
    "user_llm_base_url": "user_llm_api_key",
    "judge_llm_base_url": "judge_llm_api_key",
}


def check_urls(config: RunConfig) -> Iterator[Violation]:
    """The violations of keys whose value is no URL that a client could call."""
    yield from _checked("rollout.engine_urls", config.rollout.engine_urls, "[http://127.0.0.1:8000]")
    for key in ("user_llm_base_url", "judge_llm_base_url"):
        common = getattr(config.econfig, key)
        given = {f"econfig.{key}": common}  # once, though every domain of a run with several has it
        for name, view in config.by_domain.items():
            if (own := getattr(view.econfig, key)) != common:
                given[f"domains.{name}.econfig.{key}"] = own
        for where, url in given.items():
            yield from _checked(where, url, "http://127.0.0.1:8000/v1")


def _checked(key: str, given: str | list[str] | None, example: str) -> Iterator[Violation]:
    urls = given if isinstance(given, list) else [given] if given is not None else []
    if not all(map(_is_url, urls)):
        shown = masked(key, given)
        yield Violation(key, shown, "is no URL with http:// or https:// and a host", f"Write {key}={example}")
    elif any(map(has_credentials, urls)):
        section, _, name = key.rpartition(".")
        remedy = f"Give the secret as {section}.{_KEYS[name]}: URLs are shown and kept"
        yield Violation(key, masked(key, given), "holds a password or key", remedy)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises for what is no port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
