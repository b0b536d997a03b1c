"""The algorithm that the configuration names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, Violation

from .targets import TARGET, located, makes, refused_arguments


def instantiate_algorithm(config: RunConfig) -> PolicyGradient:
    """The algorithm named by ``algorithm._target_``. Raises ConfigError for arguments that it does not accept."""
    target = config.algorithm.get(TARGET)
    remedy = "Name a subclass of tau2_lightning.algorithm.PolicyGradient as package.Class"
    if refused := refused_arguments("algorithm", config.algorithm):
        raise ConfigError(refused)
    try:
        found = located(str(target))
    except Exception as error:
        problem = f"cannot be imported: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ConfigError([Violation(f"algorithm.{TARGET}", target, problem, remedy)]) from error
    if not makes(found, PolicyGradient):
        raise ConfigError([Violation(f"algorithm.{TARGET}", target, "is no PolicyGradient", remedy)])
    try:
        algorithm: PolicyGradient = instantiate(config.algorithm)
    except Exception as error:
        if isinstance(error.__cause__, ValueError) and (named := _named(config.algorithm, str(error.__cause__))):
            raise ConfigError([named]) from error
        # Hydra wraps the errors of a constructor; the reason is on the later lines.
        reason = " ".join(str(error).split("\n")[1:]) or str(error)
        raise ConfigError([Violation("algorithm", target, reason.strip(), "See conf/algorithm/")]) from error
    return algorithm


def _named(arguments: Mapping[str, Any], message: str) -> Violation | None:
    """The violation for the key that ``message`` of an algorithm begins with, ``algorithm.KEY`` or
    ``algorithm.KEY=value``; None where it begins with none.
    """
    found = re.match(r"algorithm\.([\w.]*\w)(=\S+ )?", message)
    if found is None:
        return None
    value: Any = arguments
    for name in found[1].split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    key = f"algorithm.{found[1]}"
    rest, _, allowed = message.partition(" is not one of ")
    if allowed:
        return Violation(key, value, "no such choice", f"Allowed: {allowed}")
    rest = message[found.end() :] if found[2] else message
    return Violation(key, value, rest, f"See --help {key}")
