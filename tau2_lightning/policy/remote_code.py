"""Checks for models that need Python code from their own folder. Such code is never run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tau2_lightning.errors import Violation

REMEDY = "Give a model whose classes are part of transformers and vLLM; code of a model is never run"


def remote_code_violations(folder: Path, path: str, key: str) -> Iterator[Violation]:
    """Reasons why the policy in ``folder`` (which the user calls ``path``) needs code of its own folder.

    Many folders name code (``auto_map``) although transformers has the classes now; these load without the code.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    config, tokenizer = _read(folder / "config.json"), _read(folder / "tokenizer_config.json")
    named = config.get("model_type")
    if config.get("auto_map") and named not in CONFIG_MAPPING:
        problem = f"its model {named!r} needs code of its own (auto_map in config.json), which transformers lacks"
        yield Violation(key, path, problem, REMEDY)
    kind = tokenizer.get("tokenizer_class")
    if _tokenizer_code(tokenizer) and (kind is None or tokenizer_class_from_name(kind) is None):
        problem = f"its tokenizer {kind!r} needs code of its own (auto_map in tokenizer_config.json)"
        yield Violation(key, path, problem, REMEDY)


def _tokenizer_code(tokenizer: dict[str, object]) -> bool:
    named = tokenizer.get("auto_map")
    return bool(named) and (not isinstance(named, dict) or "AutoTokenizer" in named)


def _read(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):  # what cannot be read is said where it is loaded
        return {}
    return found if isinstance(found, dict) else {}
