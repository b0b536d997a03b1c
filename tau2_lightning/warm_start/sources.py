"""The files that ``warm_start.data`` names, and the dialogues in them: OpenAI messages, or tau2's results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.warm_start import WarmStartConfig
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.policy.dialogues import TextDialogue, read_dialogues

from .selection import Selection

KEY = "warm_start.data"
_REMEDY = "Give JSONL files of OpenAI messages, tau2 results files, or the folder of a run"


def data_files(settings: WarmStartConfig) -> list[Path]:
    """The files of ``warm_start.data``, each once: of a folder its JSON and JSONL files, of a run's folder those in
    ``results/``. Raises ConfigError for what does not exist."""
    found: list[Path] = []
    for name in settings.sources:
        path = Path(name)
        folder = path / "results" if (path / "results").is_dir() else path
        files = sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]) if folder.is_dir() else [path]
        if not files or not files[0].is_file():
            problem = "no such file" if not path.is_dir() else "the folder holds no results"
            raise ConfigError([Violation(KEY, name, problem, _REMEDY)])
        found += files
    return list(dict.fromkeys(file.resolve() for file in found))


def dialogues_of_data(config: RunConfig, progress: Console) -> tuple[list[TextDialogue], dict[str, Any]]:
    """The dialogues of ``warm_start.data`` and facts about them.

    Of tau2's results those simulations are taken that `Selection` takes. Raises ConfigError for files that cannot be
    read, and when nothing is left.
    """
    selection = Selection(config)
    dialogues: list[TextDialogue] = []
    files = data_files(config.warm_start)
    for file in files:
        results = _results_in(file)
        dialogues += read_dialogues(file) if results is None else selection.take(file, results)
    facts: dict[str, Any] = {"data": [str(file) for file in files]}
    if selection.seen:
        for line in selection.lines():
            progress.print(f"warm start: {line}", highlight=False, soft_wrap=True)
        facts |= {"simulations": selection.seen, "taken": selection.taken, "left_out": dict(selection.left_out)}
    if not dialogues:
        raise ConfigError([selection.nothing_left()])
    return dialogues, facts


def _results_in(file: Path) -> Mapping[str, Any] | None:
    """tau2's results in ``file``, with the simulations of their folder form; None for dialogues, one in each line."""
    if file.suffix == ".jsonl":
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(content, dict) or "messages" in content:
        return None
    apart = file.parent / "simulations"  # upstream's form for large runs
    if "info" in content and not content.get("simulations") and apart.is_dir():
        content["simulations"] = [json.loads(one.read_text(encoding="utf-8")) for one in sorted(apart.glob("*.json"))]
    if "info" not in content or not isinstance(content.get("simulations"), list):
        raise ConfigError([Violation(KEY, str(file), "holds neither tau2's results nor dialogues", _REMEDY)])
    return content
