"""The output of ``--help``: the command's options and groups, or each named key's type, bounds, default and help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tau2_lightning.config.trainer_words import refused
from tau2_lightning.errors import ConfigError, Violation

from .conf_files import config_dir
from .reference import Entry, entries, shown
from .words import nearest


def print_help(about: str, options: str, words: Sequence[str]) -> None:
    """Print the help of the keys among ``words``; without a key, the help of the command.

    Words with ``=`` are overrides and change the defaults that are shown. Raises ConfigError for keys that do not
    exist, after the help of the other keys.
    """
    keys = [word for word in words if "=" not in word]
    if not keys:
        print(f"{about}\n{options}\n{_groups()}")
        return
    known = entries([word for word in words if "=" in word])
    chosen = {key: [one for one in known if f"{one.key.name}.".startswith(f"{key}.")] for key in keys}
    for entry in (entry for key in keys for entry in chosen[key]):
        print("\n".join(described(entry)))
    unknown = [key for key, found in chosen.items() if not found]
    if unknown:
        raise ConfigError([_unknown(key, [one.key.name for one in known]) for key in unknown])


def described(entry: Entry) -> Iterator[str]:
    """The lines about one key."""
    key = entry.key
    if key.section is not None or (key.kind == "mapping" and entry.default is None):
        yield f"{key.name}: {key.help}"
        return
    facts = [fact for fact in (key.kind, key.bounds, f"default {shown(entry.default)}") if fact]
    yield f"  {key.name}  ({', '.join(facts)})"
    if key.help:
        yield f"      {key.help}"


def _unknown(key: str, known: Sequence[str]) -> Violation:
    return refused(key, "") or Violation(key, "", "no such key", f"Did you mean {nearest(key, known)}?")


def _groups() -> str:
    lines = ["groups (folders of conf/) and their choices:"]
    for folder in sorted(path for path in config_dir().iterdir() if path.is_dir()):
        lines.append(f"  {folder.name:<12} {', '.join(sorted(path.stem for path in folder.glob('*.yaml')))}")
    lines.append("`--help KEY` explains a key or a section (--help rollout.retries, --help actor);")
    lines.append("docs/configuration.md lists them all.")
    return "\n".join(lines)
