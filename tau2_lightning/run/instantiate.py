"""Callbacks and loggers from the ``_target_`` entries of the configuration."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate

from tau2_lightning.config.schema import LoggerConfig, RunConfig
from tau2_lightning.config.secrets import masked
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.launch.stopping import StopSignals

from .conf_files import shipped_entries
from .targets import located, makes, refused_arguments

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger

# Hydra logs what it raises, and the violation says it.
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class _Section:
    """A section of the configuration that holds objects by name.

    ``kind`` is the name of the Lightning class that they are instances of. ``given`` are arguments that are passed to
    constructors that have parameters of these names. ``words`` are keys of the section that are no entries.
    """

    key: str
    kind: str
    given: tuple[str, ...]
    words: tuple[str, ...] = ()

    @property
    def cls(self) -> type[Any]:
        """The class ``kind``. Importing it imports Lightning, which takes seconds."""
        from lightning.pytorch import callbacks, loggers

        return {"Callback": callbacks.Callback, "Logger": loggers.Logger}[self.kind]


_CALLBACKS = _Section("callbacks", "Callback", ("folder", "config", "stops"))
_LOGGERS = _Section("logger", "Logger", ("folder", "config", "save_dir"), tuple(LoggerConfig.model_fields))


def instantiate_callbacks(config: RunConfig, folder: RunFolder, stops: StopSignals | None = None) -> list[Callback]:
    """The callbacks of ``config``, in its order; ``stops`` are the signals that the run heeds.

    Raises ConfigError listing every entry that fails.
    """
    return _instantiate(_CALLBACKS, config.callbacks, {"folder": folder, "config": config, "stops": stops})


def instantiate_loggers(config: RunConfig, folder: RunFolder) -> list[Logger]:
    """The loggers that ``config`` names, in its order. Raises ConfigError listing every entry that fails."""
    given = {"folder": folder, "config": config, "save_dir": str(folder.root)}
    return _instantiate(_LOGGERS, config.logger.entries, given)


def check_targets(config: RunConfig) -> list[Violation]:
    """The violations of the entries for callbacks and loggers, without constructing any."""
    return [*_check(_CALLBACKS, config.callbacks), *_check(_LOGGERS, config.logger.entries)]


def _check(section: _Section, entries: Mapping[str, Any]) -> list[Violation]:
    found = [_problem(section, name, entries) for name, entry in entries.items() if entry is not None]
    return [problem for problem in found if problem is not None]


def _problem(section: _Section, name: str, entries: Mapping[str, Any]) -> Violation | None:
    key, entry, kind = f"{section.key}.{name}", entries[name], section.kind
    if not isinstance(entry, Mapping) or not isinstance(entry.get("_target_"), str):
        near = difflib.get_close_matches(name, [*(other for other in entries if other != name), *section.words], n=1)
        hint = f"Did you mean {section.key}.{near[0]}? Or set" if near else "Set"
        return Violation(key, masked(key, entry), f"names no {kind}", f"{hint} {key}._target_=package.Class")
    for refused in refused_arguments(key, entry):
        return refused
    if _is_shipped(section, name, entry):
        return None
    remedy = f"Name a subclass of Lightning's {kind} as package.Class, or a function that is declared to return one"
    target = entry["_target_"]
    try:
        found = located(target)
    except Exception as error:  # noqa: BLE001  # importing a user's module may raise anything
        return Violation(f"{key}._target_", target, f"cannot be imported: {_first_line(error)}", remedy)
    if not makes(found, section.cls):
        return Violation(f"{key}._target_", target, f"is no {kind}", remedy)
    arguments = {word: value for word, value in entry.items() if not word.startswith("_")}
    given = dict.fromkeys(_asked(section, found, arguments))
    signature = inspect.signature(found)
    try:
        signature.bind(*entry.get("_args_", ()), **arguments, **given)
    except TypeError as error:
        takes = ", ".join(word for word in signature.parameters if word not in given) or "no arguments"
        return Violation(key, sorted(arguments), str(error), f"{target} takes: {takes}")
    return None


def _is_shipped(section: _Section, name: str, entry: Mapping[str, Any]) -> bool:
    """Whether conf/ has this entry, values aside: to look at it would import Lightning, which takes seconds."""
    shipped = shipped_entries(section.key).get(name)
    return isinstance(shipped, dict) and shipped["_target_"] == entry["_target_"] and set(entry) <= set(shipped)


def _instantiate(section: _Section, entries: Mapping[str, Any], given: Mapping[str, Any]) -> list[Any]:
    problems = _check(section, entries)
    if problems:
        raise ConfigError(problems)
    made = []
    for name, entry in entries.items():
        if entry is None:
            continue
        key, target = f"{section.key}.{name}", entry["_target_"]
        try:
            one = _construct(entry, {word: given[word] for word in _asked(section, located(target), entry)})
        except Exception as error:  # noqa: BLE001  # a user's constructor may raise anything
            reason = f"cannot be made: {_first_line(error)}"
            problems.append(Violation(key, target, reason, f"Change the keys of {key}, or remove it by ~{key}"))
            continue
        if not isinstance(one, section.cls):
            remedy = f"Name what makes a Lightning {section.kind}"
            problems.append(Violation(f"{key}._target_", target, f"made a {type(one).__name__}", remedy))
        made.append(one)
    if problems:
        raise ConfigError(problems)
    return made


def _construct(entry: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """The object of ``entry``. In two calls, because Hydra turns dataclasses among its arguments into configuration."""
    factory: Callable[..., Any] = instantiate({**entry, "_partial_": True}, _convert_="all")
    return factory(**given)


def _asked(section: _Section, target: Any, arguments: Mapping[str, Any]) -> list[str]:
    """Names among ``section.given`` that ``target`` has a parameter for and ``arguments`` does not set."""
    parameters = inspect.signature(target).parameters
    return [name for name in section.given if name in parameters and name not in arguments]


def _first_line(error: Exception) -> str:
    """The type and first line of an error; if Hydra wrapped it, those of its cause."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
