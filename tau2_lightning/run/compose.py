"""From command line words to a checked ``RunConfig``: Hydra composes, pydantic types, ``config_rules`` cross-checks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from tau2_lightning.config.schema import SECRETS, RunConfig
from tau2_lightning.config.secrets import mask_open_sections
from tau2_lightning.config.trainer_words import refused
from tau2_lightning.errors import ConfigError, Violation

# An override of the left key chooses the right group as well, unless the command line already chose one.
_IMPLIED_GROUPS = {"actor.path": "actor", "econfig.domain": "domain"}
OWN_DOMAIN = "own"  # conf/domain/own.yaml, for every domain without a file there


def masked(config: dict[str, Any]) -> dict[str, Any]:
    """The composed configuration with secrets replaced by ``***``, for the screen."""
    shown = {section: dict(values) if isinstance(values, dict) else values for section, values in config.items()}
    for section, names in SECRETS.items():
        for name in names:
            if shown[section].get(name) is not None:
                shown[section][name] = "***"
    return mask_open_sections(shown)


def config_dir() -> Path:
    """The folder of the Hydra groups: inside an installed package, else at the top of the repository."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def load_config(overrides: Sequence[str] = (), *, check: bool = True) -> RunConfig:
    """Compose ``conf/train.yaml`` with Hydra ``overrides`` and check it.

    With ``check=False`` only types and unknown keys are checked, not what needs tau2, the model or the machine.
    Raises ConfigError listing every violation at once.
    """
    raw = compose_dict(overrides)
    found: list[Violation] = []
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        found = [_violation(item) for item in error.errors()]
        if not check:
            raise ConfigError(found) from None
        config = _with_defaults(raw, error)
    if check:
        from .rules import check_config

        try:
            config = check_config(config)
        except ConfigError as error:
            found += error.violations
    if found:
        raise ConfigError(found)
    return config


def _with_defaults(raw: dict[str, Any], error: ValidationError) -> RunConfig:
    """``raw`` with what ``error`` complains of set back, so that the remaining rules can be checked as well."""
    defaults = compose_dict()
    for item in error.errors():
        *parents, last = item["loc"]
        node: Any = raw
        default: Any = defaults
        for key in parents:
            node = node[key]
            default = default.get(key, {}) if isinstance(default, dict) else {}
        if not isinstance(node, dict):
            continue
        if isinstance(default, dict) and last in default:
            node[last] = default[last]
        else:
            node.pop(last, None)
    return RunConfig.model_validate(raw)


def compose_dict(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose with Hydra and resolve; a plain nested dict. Raises ConfigError for words Hydra does not take."""
    overrides = list(map(_own_domain, overrides))
    words = [*_implied(overrides), *map(_as_text, overrides)]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
            _refuse_unknown_keys(_known_keys(), words)
            composed = compose("train", overrides=words)
        container = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        key = getattr(error, "full_key", None) or "command line"
        # Only the word that is wrong: others may hold keys that belong to nobody's screen.
        wrong = next((word for word in overrides if word.partition("=")[0].lstrip("+~") in str(error)), "")
        raise ConfigError([Violation(str(key), wrong, _first_line(error), _HELP)]) from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


# Sections whose keys are other programs'.
_OPEN = ("callbacks.", "logger.", "econfig.user_llm_args.", "rollout.workflow.", "scheduler.slurm.")
_HELP = "Write key=value with a key of conf/; `--cfg job` prints them all"


def _as_text(word: str) -> str:
    """The word as Hydra takes it: a new key of an open section marked as one, and ``allocation_mode=...`` with its
    value quoted: brackets and bars mean something in it, and to Hydra as well.
    """
    key, _, value = word.partition("=")
    if key.startswith(_OPEN):
        return f"++{word}"  # Hydra would want the plus signs from the user
    if key != "allocation_mode" or value[:1] in ("'", '"') or value == "null":
        return word
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def _own_domain(word: str) -> str:
    """``econfig.domain=NAME`` for a ``domain=NAME`` that has no file in conf/: tau2's registry may know it."""
    key, _, name = word.partition("=")
    known = name in ("", "null") or (config_dir() / "domain" / f"{name}.yaml").is_file()
    return word if key != "domain" or known else f"econfig.{word}"


def _implied(overrides: Sequence[str]) -> list[str]:
    given = dict(word.split("=", 1) for word in overrides if "=" in word)
    implied = []
    for key, group in _IMPLIED_GROUPS.items():
        value = given.get(key)
        if value in (None, "null") or group in given:
            continue
        choice = "hf" if group == "actor" else value
        known = (config_dir() / group / f"{choice}.yaml").is_file()
        implied.append(f"{group}={choice if known else OWN_DOMAIN}")
    return implied


@cache
def _known_keys() -> frozenset[str]:
    """Every key of the main job's composition; the files do not change while a process lives."""
    return frozenset(_dotted(OmegaConf.to_container(compose("train"), resolve=False)))


def _refuse_unknown_keys(known: frozenset[str], words: Sequence[str]) -> None:
    groups = {path.name for path in config_dir().iterdir() if path.is_dir()}
    violations = []
    for word in words:
        key, _, value = word.partition("=")
        if "=" not in word or key.startswith(("+", "~", "hydra.")):
            if "=" not in word and not key.startswith("~"):
                violations.append(Violation("command line", word, "is not an override", _HELP))
            continue
        group_files = sorted(path.stem for path in (config_dir() / key).glob("*.yaml")) if key in groups else []
        if key in groups:
            if value not in (*group_files, "null"):
                violations.append(Violation(key, value, "no such choice", f"Allowed: {', '.join(group_files)}"))
        elif key not in known and not key.startswith("algorithm."):
            nearest = difflib.get_close_matches(key, known | groups, n=1, cutoff=0.0)
            unknown = Violation(key, value, "no such key", f"Did you mean {nearest[0]}?")
            violations.append(refused(key, value) or unknown)
    if violations:
        raise ConfigError(violations)


def _dotted(node: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")


def _violation(item: Any) -> Violation:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return refused(key, item["input"]) or Violation(key, item["input"], "no such key", _HELP)
    return Violation(key, item["input"], item["msg"][0].lower() + item["msg"][1:], f"See {key} in conf/")


def _first_line(error: Exception) -> str:
    text = re.sub(r"\s*\n\s*", " ", str(error)).strip()
    return text[:300] or type(error).__name__
