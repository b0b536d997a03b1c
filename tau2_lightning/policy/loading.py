"""Find and check a policy; load its tokenizer, with a chat template, and its configuration."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tau2_lightning.errors import ConfigError, Violation

from .chat_templates import template_source
from .hub import DESCRIBING, WEIGHTS, described, fetched, is_hub_id
from .misplaced import no_folder, no_model
from .model_config import read_config
from .remote_code import remote_code_violations
from .text_part import text_config
from .weight_files import incomplete_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_policy_path(path: Path | str, key: str = "actor.path", template: str | None = None) -> list[Violation]:
    """Reasons why ``path`` is not a policy, without loading weights; empty for a policy.

    With a chat ``template`` given, its tokenizer needs none.

    A path that is not a folder and has the form ``owner/name`` is taken for a Hugging Face id, of which the files that
    describe the model are fetched once (`described`).
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.exists() or not is_hub_id(str(path)):
            return [Violation(key, str(path), *no_folder(str(path)))]
        return _check_hub_id(str(path), key, template)
    if (other := no_model(folder)) is not None:
        return [Violation(key, str(path), *other)]
    if broken := list(incomplete_files(folder)):
        remedy = "Download or save the model again"
        return [Violation(key, str(path), f"its weights are not whole: {'; '.join(broken)}", remedy)]
    return _check_files(folder, str(path), key, template)


def resolve_policy(path: Path | str, key: str = "actor.path") -> Path:
    """The local folder of the policy at ``path``: the folder itself, or a hub id's download or cache.

    Raises ConfigError, which names ``key``, when the hub (with ``HF_HUB_OFFLINE`` the cache) lacks it, or when it is
    not a policy.
    """
    folder = Path(path)
    if folder.exists() or not is_hub_id(str(path)):
        return folder
    found = fetched(str(path), (*WEIGHTS, *DESCRIBING), key)
    violations = check_policy_path(found, key)
    if violations:
        raise ConfigError(violations)
    return found


def load_tokenizer(path: Path | str, template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of the policy at ``path``, with the chat template ``template`` (`actor.chat_template`) in place of
    its own. Raises ConfigError when the path is no policy, has no chat template, or the template does not exist."""
    from transformers import AutoTokenizer

    violations = check_policy_path(path, template=template)
    if violations:
        raise ConfigError(violations)
    tokenizer = AutoTokenizer.from_pretrained(str(described(path)), trust_remote_code=False)
    if template is not None:
        tokenizer.chat_template = template_source(template)
    return tokenizer


def describes_only(path: Path | str) -> bool:
    """Whether a folder holds a ``config.json`` but neither weights nor a tokenizer: enough for a plan, not to start."""
    folder = Path(path)
    files = ("*.safetensors*", "*.bin*", "*.gguf", "tokenizer*", "vocab*", "*.model")
    return (folder / "config.json").is_file() and not any(any(folder.glob(kind)) for kind in files)


def load_model_config(path: Path | str) -> Any:
    """The transformers configuration of the text model at ``path``. Raises ConfigError when the path is no policy; a
    folder that only describes one will do."""
    if describes_only(path):
        return text_config(read_config(path))
    violations = check_policy_path(path, template="")  # a configuration needs no chat template
    if violations:
        raise ConfigError(violations)
    return text_config(read_config(path))


def quiet_transformers() -> None:
    """Silence the progress bars that transformers draws for files of a megabyte."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _check_hub_id(name: str, key: str, template: str | None) -> list[Violation]:
    try:
        folder = described(name, key)
    except ConfigError as error:
        return list(error.violations)
    if not (folder / "config.json").is_file():
        return [Violation(key, name, "holds no config.json", "Give the id of a Hugging Face model")]
    return _check_files(folder, name, key, template)


def _check_files(folder: Path, path: str, key: str, template: str | None) -> list[Violation]:
    """Whether the ``folder`` of what the user calls ``path`` needs code of its own, and whether its configuration and
    its tokenizer load."""
    if found := [*remote_code_violations(folder, path, key)]:
        return found
    try:
        config = text_config(read_config(path, key))
    except ConfigError as error:
        return list(error.violations)
    problem, has_template, tokens = _tokenizer_facts(str(folder), last_written(folder))
    if problem is not None:
        return [Violation(key, path, f"its tokenizer does not load ({problem})", "Save the tokenizer beside the model")]
    if tokens > config.vocab_size:
        problem = f"its tokenizer has token ids up to {tokens - 1}, and the model's embedding has {config.vocab_size}"
        return [Violation(key, path, problem, "Save the tokenizer that the model was trained with beside it")]
    if (problem := _wrong_stops(folder / "generation_config.json", config.vocab_size)) is not None:
        return [
            Violation(key, path, problem, "Mend the file, or remove it: the tokenizer's own token ends a turn then")
        ]
    if not has_template and template is None:
        remedy = "Use an instruction-tuned model, or set actor.chat_template"
        return [Violation(key, path, "its tokenizer has no chat template", remedy)]
    return []


def _wrong_stops(file: Path, vocabulary: int) -> str | None:
    """What is wrong with the end-of-turn tokens in ``generation_config.json``, of a model that has ``vocabulary``
    tokens; None where they are right or absent."""
    if not file.is_file():
        return None
    try:
        stops = json.loads(file.read_text()).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        return f"its {file.name} cannot be read ({error})"
    listed = stops if isinstance(stops, list) else [stops]
    if stops is None or all(type(stop) is int and 0 <= stop < vocabulary for stop in listed):
        return None
    return f"its {file.name} has eos_token_id={stops!r}, and token ids are 0 to {vocabulary - 1}"


def last_written(path: Path | str) -> int:
    """When the newest JSON or Jinja file of the folder was written, in nanoseconds; 0 for what is no folder."""
    return max((file.stat().st_mtime_ns for file in Path(path).glob("*.j*")), default=0)


@lru_cache(maxsize=8)
def _tokenizer_facts(path: str, written: int) -> tuple[str | None, bool, int]:
    """Why the tokenizer does not load, else whether it has a chat template, and one more than its largest id.

    Kept, because every check asks again and a large vocabulary takes a second: ``written`` is `last_written`, and
    another time means other facts.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  # the Rust library raises Exception itself for a broken file
        return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:200]}", False, 0
    return None, bool(tokenizer.chat_template), 1 + max(tokenizer.get_vocab().values(), default=-1)
