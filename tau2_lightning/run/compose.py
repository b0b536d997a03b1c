"""From command line words to a checked ``RunConfig``: Hydra composes, the schema types, ``run/rules.py`` checks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from tau2_lightning.config.keys import schema_keys
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.trainer_words import refused
from tau2_lightning.errors import ConfigError, Violation

from .words import HELP, JOB, hydra_words

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from pydantic_core import ErrorDetails


def config_dir() -> Path:
    """The folder of the Hydra groups: inside an installed package, else at the top of the repository."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def load_config(overrides: Sequence[str] = (), *, check: bool = True) -> RunConfig:
    """Compose ``conf/train.yaml`` with ``overrides`` and check it.

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
    """``raw`` with the default in the place of everything ``error`` names, so that the other rules can be checked."""
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
    with hydra_errors(overrides), hydra_program():
        composed = compose(JOB, overrides=hydra_words(overrides))
        container = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    return cast(dict[str, Any], container)


@contextmanager
def hydra_program() -> Iterator[Hydra]:
    """Hydra with the groups of ``conf/``; forgotten again at the end, so that the process may compose once more."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir()), job_name=JOB):
        yield cast("Hydra", GlobalHydra.instance().hydra)


@contextmanager
def hydra_errors(words: Sequence[str]) -> Iterator[None]:
    """Raises what Hydra and OmegaConf complain of as a ConfigError that names the key or the word."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        key = getattr(error, "full_key", None) or "command line"
        # Only the word that is wrong: others may hold keys that belong to nobody's screen.
        wrong = next((word for word in words if word.partition("=")[0].lstrip("+~") in str(error)), "")
        raise ConfigError([Violation(str(key), wrong, _first_line(error), HELP)]) from None


def _violation(item: ErrorDetails) -> Violation:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return refused(key, item["input"]) or Violation(key, item["input"], "no such key", HELP)
    return Violation(key, item["input"], item["msg"][0].lower() + item["msg"][1:], f"See --help {_key_of(item)}")


def _key_of(item: ErrorDetails) -> str:
    """The dotted key of the schema. A location may go on behind it, with an index or the name of a type."""
    known = {key.name for key in schema_keys(RunConfig)}
    parts = [str(part) for part in item["loc"]]
    dotted = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((key for key in dotted if key in known), "")


def _first_line(error: Exception) -> str:
    text = re.sub(r"\s*\n\s*", " ", str(error)).strip()
    return text[:300] or type(error).__name__
