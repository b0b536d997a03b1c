"""The name of a warm start in the cache: a digest of its settings, its data and the files that make it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tau2_lightning.environment import load_tasks
from tau2_lightning.environment.identity import tau2_version
from tau2_lightning.environment.task_files import is_task_file
from tau2_lightning.policy.chat_templates import template_source
from tau2_lightning.rollout.chat.template_words import template_kwargs

from .sources import data_files

if TYPE_CHECKING:
    from tau2_lightning.config.schema import RunConfig

# The files that decide most of the result: a change in any of them makes a new warm start.
_SOURCES = (
    "warm_start/dialogues.py",
    "warm_start/encoding.py",
    "warm_start/fit.py",
    "warm_start/make.py",
    "warm_start/module.py",
    "warm_start/required.py",
    "warm_start/selection.py",
    "batch/supervised.py",
    "policy/chat_template.jinja",
    "policy/dialogues.py",
    "policy/tiny.py",
    "environment/demonstrations.py",
    "environment/shares.py",
    "environment/simulations.py",
    "environment/telecom_expert.py",
)
# Where demonstrations are dialogues, also what the expert and the user say.
_DIALOGUES = ("environment/script.py", "environment/experts")
# Keys of econfig that do not change demonstrations, which tau2's own reward selects.
_IRRELEVANT = {"user_llm_api_key", "transfer_penalty", "turn_discount", "invalid_format_penalty"}
_IRRELEVANT |= {"judge_llm", "judge_llm_base_url", "judge_llm_api_key", "judge_llm_args"}  # no judge sees them
# Keys of warm_start that do not change what is learned.
_WATCHING = {"validate_every_n_steps", "checkpoint_every_n_steps", "checkpoint_every_n_minutes"}


def warm_start_digest(config: RunConfig, given: Path | None) -> str:
    """Twelve hexadecimal digits: a digest of settings, data, `_SOURCES` and, for dialogues, `_DIALOGUES`.

    ``given`` is the folder that it starts from; a folder downloaded from the hub has the revision in its name.
    """
    settings = config.warm_start
    package = Path(__file__).parents[1]
    dialogues = any(not view.econfig.solo_mode for view in config.by_domain.values())
    sources = [file for name in (*_SOURCES, *(_DIALOGUES if dialogues else ())) for file in _files(package / name)]
    files = data_files(settings)
    if given is not None:
        files += sorted(given.glob("*.*"))
    facts = {
        "settings": settings.model_dump(mode="json", exclude=_WATCHING),
        "domains": [
            [weight, view.econfig.model_dump(mode="json", exclude=_IRRELEVANT), _tasks(view)]
            for weight, view in zip(config.weights.values(), config.by_domain.values(), strict=True)
        ],
        "policy": [config.actor.path, config.actor.size],
        "lora": config.actor.lora.model_dump(mode="json", exclude={"sync"}) if given is not None else None,
        "moments": config.actor.optimizer.type if given is not None else None,
        "template": _template(config) if given is not None else None,
        "tau2": tau2_version(),
        "sources": {str(file.relative_to(package)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sources},
        "files": [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _tasks(view: RunConfig) -> str | list[str]:
    """The split's name, or the ids in the file that it names."""
    split = view.train_dataset.split
    if not is_task_file(split):
        return split
    return [task.task_id for task in load_tasks(view.econfig.domain, split, solo_mode=bool(view.econfig.solo_mode))]


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.py")) if path.is_dir() else [path]


def _template(config: RunConfig) -> list[Any]:
    """What turns dialogues into tokens, besides the tokenizer."""
    given, words = config.actor.chat_template, template_kwargs(config.gconfig)
    return [given, None if given is None else template_source(given), config.rollout.history_policy, words]
