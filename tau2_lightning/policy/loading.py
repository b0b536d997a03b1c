"""Find and check a policy; load its tokenizer, with a chat template, and its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tau2_lightning.errors import ConfigError, Violation

from .chat_templates import template_source
from .remote_code import remote_code_violations
from .text_part import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The files of a policy, without the copies in other formats that some repositories have.
_POLICY_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
_OTHER_FILES = ("*/*", "consolidated*")


def check_policy_path(path: Path | str, key: str = "actor.path", template: str | None = None) -> list[Violation]:
    """Reasons why ``path`` is not a policy, without loading weights; empty for a policy.

    With a chat ``template`` given, its tokenizer needs none.

    A path that is not a folder and has the form ``owner/name`` is taken for a Hugging Face id, which transformers
    resolves from its cache or the hub.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.exists() or not _is_hub_id(str(path)):
            return [Violation(key, str(path), "no such folder", "Give a Hugging Face folder or a hub id `owner/name`")]
        return _check_hub_id(str(path), key, template)
    if not (folder / "config.json").is_file():
        return [Violation(key, str(path), "holds no config.json", "Give a Hugging Face model folder")]
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        return [Violation(key, str(path), "holds no weights", "Give a folder with *.safetensors files")]
    return [*remote_code_violations(path, key)] or _check_tokenizer(str(path), key, template)


def resolve_policy(path: Path | str, key: str = "actor.path") -> Path:
    """The local folder of the policy at ``path``: the folder itself, or a hub id's download or cache.

    Several processes may call it simultaneously: huggingface_hub locks the files that it writes. Raises ConfigError,
    which names ``key``, when the hub (with ``HF_HUB_OFFLINE`` the cache) lacks it, or when it is not a policy.
    """
    folder = Path(path)
    if folder.exists() or not _is_hub_id(str(path)):
        return folder
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(str(path), allow_patterns=[*_POLICY_FILES], ignore_patterns=[*_OTHER_FILES])
    except (OSError, ValueError) as error:  # every error of huggingface_hub is one of these
        problem = f"cannot be had from the hub ({str(error).splitlines()[0]})"
        remedy = "Check the spelling and HF_TOKEN; with HF_HUB_OFFLINE download it first, or give a local folder"
        raise ConfigError([Violation(key, str(path), problem, remedy)]) from error
    violations = check_policy_path(found, key)
    if violations:
        raise ConfigError(violations)
    return Path(found)


def load_tokenizer(path: Path | str, template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of the policy at ``path``, with the chat template ``template`` (`actor.chat_template`) in place of
    its own. Raises ConfigError when the path is no policy, has no chat template, or the template does not exist."""
    from transformers import AutoTokenizer

    violations = check_policy_path(path, template=template)
    if violations:
        raise ConfigError(violations)
    tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    if template is not None:
        tokenizer.chat_template = template_source(template)
    return tokenizer


def load_model_config(path: Path | str) -> Any:
    """The transformers configuration of the text model at ``path``. Raises ConfigError when the path is no policy."""
    from transformers import AutoConfig

    violations = check_policy_path(path)
    if violations:
        raise ConfigError(violations)
    return text_config(AutoConfig.from_pretrained(str(path), trust_remote_code=False))


def quiet_transformers() -> None:
    """Silence the progress bars that transformers draws for files of a megabyte."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _is_hub_id(text: str) -> bool:
    parts = text.split("/")
    return len(parts) == 2 and all(part and not part.startswith(".") for part in parts)


def _check_hub_id(name: str, key: str, template: str | None) -> list[Violation]:
    from transformers.utils import cached_file

    try:
        cached_file(name, "config.json")
    except OSError as error:
        problem = f"no such folder, and not to be had as a hub id ({str(error).splitlines()[0]})"
        return [Violation(key, name, problem, "Check the spelling, or give a local folder")]
    return [*remote_code_violations(name, key)] or _check_tokenizer(name, key, template)


def _check_tokenizer(path: str, key: str, template: str | None) -> list[Violation]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        return [Violation(key, path, f"its tokenizer does not load ({error})", "Save the tokenizer beside the model")]
    if not tokenizer.chat_template and template is None:
        remedy = "Use an instruction-tuned model, or set actor.chat_template"
        return [Violation(key, path, "its tokenizer has no chat template", remedy)]
    return []
