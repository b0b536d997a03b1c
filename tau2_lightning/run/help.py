"""The output of ``--help``: the command's options and groups, or each named key's type, bounds, default and help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tau2_lightning.config.domains import OF_THE_RUN
from tau2_lightning.config.secrets import masked
from tau2_lightning.config.trainer_words import refused
from tau2_lightning.errors import ConfigError, Violation

from .conf_files import config_dir
from .nearest import suggestion
from .reference import Entry, entries, shown


def print_help(about: str, options: str, words: Sequence[str]) -> None:
    """Print the help of the keys and groups among ``words``; without a key, the help of the command.

    Words with ``=`` are overrides and change the defaults that are shown. Raises ConfigError for keys that do not
    exist, after the help of the other keys.
    """
    keys = [word for word in words if "=" not in word]
    if not keys:
        print(f"{about}\n{options}\n{_groups()}")
        return
    known = entries([word for word in words if "=" in word])
    unknown = []
    for key in keys:
        found = [one for one in known if f"{one.key.name}.".startswith(f"{_in_schema(key)}.")]
        lines = [line for entry in found for line in described(entry)] or list(_group(key))
        if lines:
            print("\n".join(lines))
        else:
            unknown.append(key)
    if unknown:
        raise ConfigError([_unknown(key, [one.key.name for one in known]) for key in unknown])


def described(entry: Entry) -> Iterator[str]:
    """The lines about one key."""
    key = entry.key
    if key.section is not None or (key.kind == "mapping" and entry.default is None):
        yield f"{key.name}: {key.help}"
        return
    facts = [fact for fact in (key.kind, key.bounds, f"default {shown(masked(key.name, entry.default))}") if fact]
    yield f"  {key.name}  ({', '.join(facts)})"
    if key.help:
        yield f"      {key.help}"


def _unknown(key: str, known: Sequence[str]) -> Violation:
    return refused(key, "") or Violation(key, "", "no such key", suggestion(key, known))


def _in_schema(key: str) -> str:
    """The name in the schema of a key of one domain: that of the section's own key for a key of its section."""
    mapping, _, rest = key.partition(".")
    name, _, own = rest.partition(".")
    if mapping != "domains" or not name:
        return key
    section, _, deeper = own.partition(".")
    if deeper and section in OF_THE_RUN:
        return own
    return ".".join(filter(None, ("domains.NAME", own)))


def _group(name: str) -> Iterator[str]:
    """The lines about a group whose files set keys of several sections."""
    if choices := _choices().get(name):
        yield f"{name}: a group; {name}=CHOICE takes the values of a file of conf/{name}"
        yield f"  choices: {', '.join(choices)}"
        if name == "domain":
            yield f"  {name}=[telecom,retail] trains on several; a domain that you register in tau2 needs no file"


def _groups() -> str:
    lines = ["groups (folders of conf/) and their choices:"]
    lines += [f"  {name:<12} {', '.join(choices)}" for name, choices in _choices().items()]
    lines.append("`--help KEY` explains a key or a section (--help rollout.retries, --help actor);")
    lines.append("docs/configuration.md lists them all.")
    return "\n".join(lines)


def _choices() -> dict[str, list[str]]:
    folders = sorted(path for path in config_dir().iterdir() if path.is_dir())
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}
