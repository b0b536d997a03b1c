"""What pydantic finds wrong with a composed configuration, in this project's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tau2_lightning.config.domains import OF_THE_RUN
from tau2_lightning.config.environment import DomainConfig
from tau2_lightning.config.keys import schema_keys
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import HIDDEN, masked, names_a_secret
from tau2_lightning.config.trainer_words import refused
from tau2_lightning.errors import Violation

from .nearest import nearest, suggestion
from .words import HELP

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def violations_of(raw: Mapping[str, Any], error: ValidationError) -> list[Violation]:
    """One violation for each key of ``raw`` that ``error`` names. Values show no secrets."""
    found: dict[str, Violation] = {}
    for item in error.errors():
        one = _violation(raw, item)
        first = found.setdefault(one.key, one)
        if first is not one:  # the types of a union, each with its own complaint
            found[one.key] = Violation(one.key, first.value, f"{first.problem}, or {one.problem}", one.remedy)
    return list(found.values())


def key_of(raw: Mapping[str, Any], item: ErrorDetails) -> list[str]:
    """The path of the key that ``item`` is about: its location without pydantic's names for the types of a union."""
    path: list[str] = []
    node: Any = raw
    for part in map(str, item["loc"]):
        known = isinstance(node, Mapping) and part in node
        if not known and item["type"] != "missing":
            break
        path.append(part)
        node = node[part] if known else None
    return path


def _violation(raw: Mapping[str, Any], item: ErrorDetails) -> Violation:
    key = ".".join(key_of(raw, item))
    if item["type"] == "missing":  # its input is the whole section
        return Violation(key, "", "was removed, and has no default elsewhere", f"Leave ~{key} out")
    value = masked(key, item["input"])
    if item["type"] == "extra_forbidden":
        value = HIDDEN if names_a_secret(f"{key}=") else value  # also of a key that is misspelled
        return refused(key, value) or Violation(key, value, *_unknown(key))
    if item["type"] == "model_type":
        return Violation(key, value, "is a section, which holds keys and no value of its own", f"See --help {key}")
    if item["type"] == "string_type" and isinstance(item["input"], int | float):
        kind = "true or false" if isinstance(item["input"], bool) else "a number"
        return Violation(key, value, f"must be text, and is read as {kind}", f"Put it in quotes: \"{key}='TEXT'\"")
    message = item["msg"].removeprefix("Value error, ")
    return Violation(key, value, message[0].lower() + message[1:], f"See --help {key}")


def _unknown(key: str) -> tuple[str, str]:
    """What is wrong with a ``key`` that the schema lacks, and the remedy. Only below a domain its likeness is looked
    for: `words` has refused other keys before.
    """
    mapping, _, rest = key.partition(".")
    name, _, own = rest.partition(".")
    if mapping != "domains" or not own:
        return "no such key", HELP
    of_the_run = {f"{section}.{one}" for section, keys in OF_THE_RUN.items() for one in keys}
    of_a_domain = {one.name for one in schema_keys(DomainConfig)} - of_the_run
    last = own.rpartition(".")[2]
    meant = {one.name for one in schema_keys(RunConfig) if one.name.rpartition(".")[2] == last} - of_a_domain
    if meant and not any(one.rpartition(".")[2] == last for one in of_a_domain):
        return "belongs to the whole run", f"Set {nearest(own, meant)} instead"
    return "no such key", suggestion(own, of_a_domain, f"domains.{name}.")
