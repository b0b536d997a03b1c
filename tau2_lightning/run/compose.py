"""From command line words to a checked ``RunConfig``: Hydra composes, the schema types, ``run/rules.py`` checks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from tau2_lightning.config.redaction import redacted, remember
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import HIDDEN, is_secret_word, secrets_in
from tau2_lightning.errors import ConfigError, Violation

from .conf_files import config_dir
from .domains import with_domains
from .native_types import with_native_types
from .violations import key_of, violations_of
from .words import HELP, JOB, hydra_words, is_hydras, quoted, refuse_unreadable

# Words that are far from any override make Hydra fail in its own code: with other errors than those it has for users.
# A file of --config-dir that is no YAML, or cannot be read, fails in the reader's.
_OF_HYDRA = (
    HydraException, OmegaConfBaseException, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError,
    AssertionError, YAMLError, OSError,
)  # fmt: skip

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra


def load_config(overrides: Sequence[str] = (), *, check: bool = True, starts: bool = False) -> RunConfig:
    """Compose ``conf/train.yaml`` with ``overrides`` and check it.

    With ``check=False`` only types and unknown keys are checked, not what needs tau2, the model or the machine.
    Raises ConfigError that lists every violation; for a program that ``starts`` a run, with those that would keep the
    policy from starting, which is looked at later where nothing else is wrong.
    """
    refuse_unreadable(overrides)
    raw, found = _composed(overrides)
    try:
        raw = with_native_types(with_domains(raw, overrides, lambda words: _composed(words)[0]))
    except ConfigError as error:
        raise ConfigError([*found, *error.violations]) from None
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        found += violations_of(raw, error)
        if not check:
            raise ConfigError(found) from None
        try:
            config = _with_defaults(raw, error)
        except ValidationError:  # a value without a default: the other rules cannot be checked
            raise ConfigError(found) from None
    if check:
        from .rules import check_config

        try:
            config = check_config(config, found, lambda: load_config(check=False))
        except ConfigError as error:
            found += error.violations
        if found and starts and config.actor.path is not None and Path(config.actor.path).is_dir():
            from .environment_rules import resolved_where_known
            from .policy import policy_problems

            found += policy_problems(resolved_where_known(config), found)
    if found:
        raise ConfigError(found)
    return config


def refuse_plan(config: RunConfig) -> None:
    """Raise ConfigError when a program that plans nothing is asked for a plan."""
    if config.plan:
        problem = "is for tau2_lightning.train, which plans the same words"
        raise ConfigError([Violation("plan", True, problem, "Leave it out here")])


def _composed(overrides: Sequence[str]) -> tuple[dict[str, Any], list[Violation]]:
    """The composition without the overrides that Hydra does not take, and what is wrong with these."""
    taken, found = list(overrides), list[Violation]()
    while True:
        try:
            return compose_dict(taken), found
        except ConfigError as error:
            found += error.violations
            wrong = {one.key for one in error.violations} | {one.value for one in error.violations}
            left = [word for word in taken if not {word, word.partition("=")[0]} & wrong]
            if len(left) == len(taken):
                raise ConfigError(found) from None
            taken = left


def _with_defaults(raw: dict[str, Any], error: ValidationError) -> RunConfig:
    """``raw`` with defaults for everything that ``error`` names, so that the other rules can be checked."""
    defaults = with_native_types(compose_dict())
    # What a domain among several has beside its sections, as each file of conf/domain gives it.
    of_a_domain = next(iter(defaults["domains"].values()))
    for item in error.errors():
        *parents, last = key_of(raw, item)
        node: Any = raw
        default: Any = defaults
        # The sections of a domain among several have the defaults of the run's own.
        skipped = 2 if parents[:1] == ["domains"] and len(parents) > 1 else 0
        if skipped:
            default = of_a_domain | defaults
        for place, key in enumerate(parents):
            node = node[key]
            if place >= skipped:
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
        container = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    remember(secrets_in(container))
    return container


@contextmanager
def hydra_program() -> Iterator[Hydra]:
    """Hydra with the groups of ``conf/``; reset at the end, so that the process can compose again."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir()), job_name=JOB):
        yield cast("Hydra", GlobalHydra.instance().hydra)


@contextmanager
def hydra_errors(words: Sequence[str]) -> Iterator[None]:
    """Turns errors of Hydra and OmegaConf into a ConfigError that names the key or the word.

    A word that may hold a secret is named by its key only, and the text of the error, which quotes it, is left out.
    """
    try:
        yield
    except _OF_HYDRA as error:
        key = str(getattr(error, "full_key", None) or "command line")
        # Only the wrong word: other words may contain secrets.
        unread = getattr(error, "override", None)  # of a word that is no override
        wrong = next((word for word in words if word == unread), None)
        if wrong is None:
            wrong = next((word for word in words if word.partition("=")[0].lstrip("+~") in str(error)), None)
        if wrong is None:
            wrong = next(filter(_fails_alone, reversed(words)), "")  # the newest word is mostly the wrong one
        # The text may quote a secret although its key is not in it: where the value is what cannot be read.
        wrong = next((word for word in words if is_secret_word(word) and _fails_alone(word)), wrong)
        problem, remedy = _problem_of(error, wrong)
        if any(map(is_secret_word, words)) and (is_secret_word(wrong) or not wrong):
            name = wrong.partition("=")[0] or "a word"
            wrong, problem, remedy = f"{name}={HIDDEN}", "cannot be read", "Put the value in quotes"
        value = redacted(wrong).removeprefix(f"{key}=")
        raise ConfigError([Violation(key, value, redacted(problem), remedy)]) from None


def _fails_alone(word: str) -> bool:
    """Whether Hydra does not take ``word`` by itself."""
    try:
        with hydra_program():
            compose(JOB, overrides=hydra_words([word]))
    except (*_OF_HYDRA, ConfigError):
        return True
    return False


def _problem_of(error: Exception, word: str) -> tuple[str, str]:
    """What is wrong and how to mend it: for the mistakes that are made most in plain words, else in Hydra's."""
    text = str(error).partition("\n    full_key:")[0]  # the key is named elsewhere
    if isinstance(error, OverrideParseException):
        key, _, value = word.partition("=")
        if value.startswith("~"):
            return "a shell expands ~ at the beginning of a word only", f"Write {key}=$HOME{value[1:]}"
        plain = f"{key}={quoted(value)}"
        problem = "Hydra's grammar cannot read it: brackets and quotes must close, and other signs need quotes"
        in_a_shell = shlex.quote(plain) if set(plain) & set('"$`\\!') else f'"{plain}"'
        return problem, f"Write {in_a_shell} to give it as plain text"
    if variable := re.search(r"Environment variable '(.*?)' not found", text):
        name = variable[1]
        return f"the environment variable {name} is not set", f"Set it, or give a default: ${{oc.env:{name},VALUE}}"
    if missing := re.match(r"Interpolation key '(.*?)' not found", text):
        return f"refers to {missing[1]}, and there is no such key", HELP
    remedy = "--info plugins lists what is installed, --cfg hydra its keys" if is_hydras(word) else HELP
    one_line = re.sub(r"\s*\n\s*", " ", text).strip().rstrip(".")
    return one_line[:300] or type(error).__name__, remedy
