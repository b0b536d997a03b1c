"""The words of a command line as Hydra takes them: conveniences are written out, unknown keys are refused.

Conveniences: ``mode=plan`` is ``plan=true``; ``actor.path=X`` chooses the group ``actor=hf``; ``econfig.domain=X``
chooses ``domain=X``; a domain that has no file in ``conf/domain`` is looked up in tau2's registry; keys of open
sections need no ``+``; an allocation needs no quotes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tau2_lightning.config import secrets
from tau2_lightning.config.trainer_words import refused
from tau2_lightning.errors import ConfigError, Violation

from .nearest import suggestion

JOB = "train"  # conf/train.yaml, the main job
HELP = "Write key=value with a key of conf/; `--cfg job` prints them all"
# An override of the left key chooses the right group as well, unless the command line already chose one.
_IMPLIED_GROUPS = {"actor.path": "actor", "econfig.domain": "domain"}
_OWN_DOMAIN = "own"  # conf/domain/own.yaml, for every domain without a file there
# Keys that may be absent from conf/: Hydra would require plus signs.
_ADDED = tuple(f"{mapping}." for mapping in secrets.OPEN_MAPPINGS)
# Keys of one domain among several; conf/ need not have them.
_OF_A_DOMAIN = "domains."
# The keys of the algorithm that the words choose; Hydra knows them.
_CHOSEN = "algorithm."
# The only group of the defaults list that may be left out.
_OPTIONAL = "experiment"
_HYDRA = ("hydra.", "hydra/")


def hydra_words(words: Sequence[str]) -> list[str]:
    """The words for Hydra's composition. Hydra must be initialized.

    Raises ConfigError that lists every word that is no override, every unknown key and every unknown choice.
    """
    groups = _Groups(words)
    words = [one for word in words for one in _own_domain(_planned(word), groups)]
    written = [*_implied(words, groups), *map(as_text, words)]
    _refuse_unknown(written, groups)
    return written


def _planned(word: str) -> str:
    """``plan=true`` for ``mode=plan``, which leaves the mode as the other words choose it: training, or a
    validation."""
    return "plan=true" if word.replace("'", "").replace('"', "") == "mode=plan" else word


def is_hydras(word: str) -> bool:
    """Whether the word is an override of Hydra itself, such as ``hydra/launcher=joblib``."""
    return word.lstrip("+~").startswith(_HYDRA)


def as_text(word: str) -> str:
    """The word as Hydra takes it: a new key of an open section marked as one, and ``allocation_mode=...`` with its
    value quoted, because brackets and bars have a meaning in it and another one in Hydra's grammar.
    """
    key, _, value = word.partition("=")
    if key.startswith(_ADDED) or key.startswith(_OF_A_DOMAIN):
        return f"++{word}"
    if key != "allocation_mode" or value[:1] in ("'", '"') or value == "null":
        return word
    return f"{key}={quoted(value)}"


def quoted(value: str) -> str:
    """``value`` as a quoted string of Hydra's grammar."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


class _Groups:
    """The groups of conf/ and of the folders that ``hydra.searchpath`` adds."""

    def __init__(self, words: Sequence[str]) -> None:
        self._loader = GlobalHydra.instance().config_loader()
        self._paths = [word for word in words if word.startswith("hydra.searchpath=")]
        self.names = frozenset(self._loader.list_groups("")) - {"hydra"}

    def choices(self, group: str) -> list[str]:
        return list(self._loader.get_group_options(group, overrides=self._paths))


def _own_domain(word: str, groups: _Groups) -> list[str]:
    """``econfig.domain=NAME`` for a ``domain=NAME`` that has no file in conf/: tau2's registry may know it. A list of
    domains keeps those with a file; the others get an entry of ``domains``.
    """
    key, _, name = word.partition("=")
    if key != "domain":
        return [word]
    choices = groups.choices(key)
    names = listed(name)
    if names is None:
        several = Violation(key, name, "names several domains", f"Write domain=[{name}], or add --multirun")
        if "," in name:
            raise ConfigError([several])
        return [word] if name in ("", "null", *choices) else [f"econfig.{word}"]
    if not names or len(set(names)) < len(names) or "" in names:
        raise ConfigError([Violation(key, name, "is no list of different domains", "Write domain=[telecom,retail]")])
    if len(names) == 1:
        return _own_domain(f"{key}={names[0]}", groups)
    own = [one for one in names if one not in choices]
    filed = [one for one in names if one in choices] or [_OWN_DOMAIN]
    words = [f"{key}=[{','.join(filed)}]", *(f"++domains.{one}={{chosen: true, weight: 1.0}}" for one in own)]
    return [*words, f"econfig.domain={names[0]}"] if filed == [_OWN_DOMAIN] else words


def listed(value: str) -> list[str] | None:
    """The names in ``[telecom, retail]``; None for a value that is no list."""
    if not (value.startswith("[") and value.endswith("]")):
        return None
    inner = value[1:-1].strip()
    return [name.strip().strip("'\"") for name in inner.split(",")] if inner else []


def _implied(words: Sequence[str], groups: _Groups) -> Iterator[str]:
    given = dict(word.split("=", 1) for word in words if "=" in word)
    for key, group in _IMPLIED_GROUPS.items():
        value = given.get(key)
        if value in (None, "null") or group in given:
            continue
        choice = "hf" if group == "actor" else value
        yield f"{group}={choice if choice in groups.choices(group) else _OWN_DOMAIN}"


@cache
def _known_keys() -> frozenset[str]:
    """Every key of the main job's composition; the files do not change while a process lives."""
    return frozenset(_dotted(OmegaConf.to_container(compose(JOB), resolve=False)))


def _refuse_unknown(words: Sequence[str], groups: _Groups) -> None:
    violations = []
    for word in words:
        key, equals, value = word.partition("=")
        if secrets.is_secret_word(word):
            word, value = f"{key}={secrets.HIDDEN}", secrets.HIDDEN  # also of a key that is misspelled
        if (not equals and not key.startswith("~")) or not key.strip("+~"):
            violations.append(Violation("command line", word, "is not an override", HELP))
        elif key.startswith(("+", "~", *_HYDRA)):
            continue
        elif key in groups.names:
            choices = groups.choices(key)
            chosen = (listed(value) if key == "domain" else None) or [value]
            if not set(chosen) <= {*choices, *(["null"] if key == _OPTIONAL else [])}:
                violations.append(Violation(key, value, "no such choice", f"Allowed: {', '.join(choices)}"))
        elif key not in _known_keys() and not key.startswith(_CHOSEN):
            remedy = suggestion(key, _known_keys() | groups.names)
            violations.append(refused(key, value) or Violation(key, value, "no such key", remedy))
    if violations:
        raise ConfigError(violations)


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")


def refuse_unreadable(words: Sequence[str]) -> None:
    """Raise ConfigError for words with bytes that are not UTF-8, which could be neither printed nor stored."""
    found = []
    for word in words:
        shown = word.encode("utf-8", "backslashreplace").decode()
        if shown.encode() != word.encode("utf-8", "surrogatepass"):
            shown = f"{shown.partition('=')[0]}={secrets.HIDDEN}" if secrets.is_secret_word(word) else shown
            found.append(Violation("command line", shown, "is not UTF-8", "Write the word in UTF-8"))
    if found:
        raise ConfigError(found)
