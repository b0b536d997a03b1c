"""Models that are named by a hub id: their files in huggingface_hub's cache, and one error where they cannot be had.

transformers asks the hub for each file, and again and again where it does not answer, which takes minutes. Here one
request decides; after it everything is read from the folder in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tau2_lightning.errors import ConfigError, Violation

#: Seconds in which the hub must say what a model consists of.
SECONDS = 10.0
#: The files that describe a model and its tokenizer, and its weights, without the copies in other formats that some
#: repositories have.
DESCRIBING = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
WEIGHTS = ("*.safetensors",)
_OTHER_FILES = ("*/*", "consolidated*")

# A hub id -> the folder of what describes it, or why there is none: the checks of one start ask many times.
_described: dict[str, Path | str] = {}


def is_hub_id(text: str) -> bool:
    """Whether ``text`` has the form ``owner/name``."""
    parts = text.split("/")
    return len(parts) == 2 and all(part and not part.startswith(".") for part in parts)


def described(path: Path | str, key: str = "actor.path") -> Path:
    """The folder with the configuration and the tokenizer of the model at ``path``: itself, or for a hub id the one in
    the cache, which is fetched once.

    Raises ConfigError, which names ``key``, when there is none.
    """
    folder, name = Path(path), str(path)
    if folder.exists() or not is_hub_id(name):
        return folder
    if name not in _described:
        try:
            _described[name] = fetched(name, DESCRIBING, key)
        except ConfigError as error:
            _described[name] = error.violations[0].problem
    found = _described[name]
    if isinstance(found, str):
        raise ConfigError([Violation(key, name, found, _remedy(name))])
    return found


def fetched(name: str, patterns: Sequence[str], key: str) -> Path:
    """The folder in the cache with the files of the hub's model ``name`` that match ``patterns``.

    Files that the cache has are not fetched again; where the hub does not answer, they are all. Several processes may
    call it simultaneously: huggingface_hub locks the files that it writes. Raises ConfigError, which names ``key``.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, allow_patterns=[*patterns], ignore_patterns=[*_OTHER_FILES], etag_timeout=SECONDS
        )
    except (OSError, ValueError) as error:  # every error of huggingface_hub is one of these
        raise ConfigError([Violation(key, name, _problem(error), _remedy(name))]) from error
    return Path(folder)


def _problem(error: Exception) -> str:
    from huggingface_hub import constants, errors

    nowhere = f"is no folder here, and is not in the cache ({constants.HF_HUB_CACHE})"
    hub, reason = constants.ENDPOINT, (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, errors.GatedRepoError):
        return f"{nowhere}; {hub} gives it to accounts with granted access only"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{nowhere}; {hub} has no model of this name that it shows to this account"
    if constants.is_offline_mode():
        return f"{nowhere}; HF_HUB_OFFLINE forbids to ask {hub}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{nowhere}; {hub} cannot be reached ({reason.removeprefix('Got: ')})"
    return f"cannot be had from {hub} ({reason})"


def _remedy(name: str) -> str:
    return (
        "Check the spelling; give the path of a Hugging Face folder, or an id `owner/name` that HF_TOKEN may read. "
        f"Without a network: `hf download {name}` elsewhere, and copy the cache; HF_ENDPOINT names a mirror"
    )
