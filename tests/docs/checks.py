"""What can be known of a documented command without starting anything: a check for each program that pages name."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path

from tau2_lightning import sft
from tau2_lightning.errors import ConfigError
from tau2_lightning.evaluation import report as comparison
from tau2_lightning.report import __main__ as page_of_runs
from tau2_lightning.run import exporting
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.reference import entries
from tau2_lightning.run.sweep import sweep

from .pages import ROOT

Check = Callable[[list[str]], None]
_OPTIONS = {"--help", "-h", "--cfg", "-p", "--package", "--multirun", "-m", "--resolve", "--config-dir"}


class Wrong(AssertionError):
    """A documented command that does not work."""


def check(words: Sequence[str]) -> None:
    """Raises Wrong, or an error of the program itself, for a command that would not be taken."""
    program, *rest = words
    if re.fullmatch(r"python[\d.]*|\.venv/bin/python", program):
        _python(rest)
    elif program == "torchrun":
        at = rest.index("-m")
        _module(rest[at + 1], rest[at + 2 :])
    elif "=" in program:  # words of a command, by themselves
        compose(list(words))
    elif program in PROGRAMS:
        PROGRAMS[program](rest)
    else:
        raise Wrong(f"{program}: no check knows this program; add one to tests/docs/checks.py")


# ------------------------------------------------------------------------------------------------- our own commands


def compose(words: list[str]) -> None:
    """The words of train, sft, serve and the proxy: they compose, and keys asked for by ``--help`` exist."""
    given = [word for word in words if "=" in word]
    if unknown := [word for word in words if word.startswith("-") and word not in _OPTIONS]:
        raise Wrong(f"no such option: {unknown}")
    if "--multirun" in words:
        sweep(given)
    elif "--help" in words:
        known = [f"{entry.key.name}." for entry in entries(given)]
        for key in (word for word in words if "=" not in word and not word.startswith("-")):
            if not any(name.startswith(f"{key}.") for name in known):
                raise Wrong(f"--help {key}: no such key")
    else:
        load_config(given, check=False)


def _sft(words: list[str]) -> None:
    compose([sft.in_section(word) for word in words])


def _export(words: list[str]) -> None:
    """All is right but the checkpoint, which is not there."""
    try:
        exporting.Export.of(words)
    except ConfigError as error:
        if wrong := [one for one in error.violations if one.problem != "no such folder"]:
            raise Wrong(str(wrong)) from error


def _compare(words: list[str]) -> None:
    """argparse ends the program at a wrong option; folders that are not there give 2."""
    if comparison.main(words) != 2:
        raise Wrong("compared folders that are not there")


def _report(words: list[str]) -> None:
    page_of_runs._parser().parse_args(words)


# -------------------------------------------------------------------------------------------------- other programs


def _python(words: list[str]) -> None:
    if words[0] == "-m":
        _module(words[1], words[2:])
    elif words[0] == "my_train.py":  # the reader's, shown in docs/extending/domain.md: main() of tau2_lightning.train
        compose(words[1:])
    else:
        _file(words[:1])


def _module(name: str, words: list[str]) -> None:
    if name in OURS:
        OURS[name](words)
        return
    first, *inner = name.split(".")
    found = importlib.util.find_spec(first)
    if found is None:
        raise Wrong(f"no module {name}")
    # Without importing the packages on the way, which takes vLLM half a minute.
    for folder in map(Path, found.submodule_search_locations or ()):
        if inner and not (folder.joinpath(*inner).is_dir() or folder.joinpath(*inner).with_suffix(".py").is_file()):
            raise Wrong(f"no module {name}")
    for word in words:
        if re.fullmatch(r"tau2_lightning(\.\w+)+", word):
            _attribute(word)


def _attribute(word: str) -> None:
    """A class of ours, by its dotted name. Its file is read and not imported: some are loaded inside vLLM only."""
    module, _, name = word.rpartition(".")
    path = ROOT / f"{module.replace('.', '/')}.py"
    if not path.is_file() or not re.search(rf"^class {name}\b", path.read_text(), re.M):
        raise Wrong(f"no class {word}")


def _file(words: list[str]) -> None:
    if not (ROOT / words[0]).is_file():
        raise Wrong(f"no file {words[0]}")


def _make(words: list[str]) -> None:
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    if unknown := {word for word in words if "=" not in word} - rules:
        raise Wrong(f"make has no rule {unknown}")


def _pytest(words: list[str]) -> None:
    known = {marker.partition(":")[0] for marker in _project()["tool"]["pytest"]["ini_options"]["markers"]}
    for option, value in pairwise(words):
        if option == "-m" and (unknown := set(re.findall(r"\w+", value)) - {*known, "and", "or", "not"}):
            raise Wrong(f"no such marker: {unknown}")
    if missing := [word for word in words if word.startswith("tests") and not (ROOT / word).exists()]:
        raise Wrong(f"no such tests: {missing}")


def _pip(words: list[str]) -> None:
    extras = set(_project()["project"]["optional-dependencies"])
    for named in re.findall(r"(?:^\.|tau2-lightning)\[([\w,-]+)\]", "\n".join(words), re.M):
        if unknown := set(named.split(",")) - extras:
            raise Wrong(f"no such extra: {unknown}")


def _bash(words: list[str]) -> None:
    _file(words)


def _source(words: list[str]) -> None:
    if len(words) != 1 or not re.fullmatch(r"\.venv[\w.-]*/bin/activate", words[0]):
        raise Wrong(f"source {words}")


def _script(name: str) -> Check:
    """A program that an installed package brings."""

    def installed(_: list[str]) -> None:
        if not entry_points(group="console_scripts", name=name):
            raise Wrong(f"no package brings the program {name}")

    return installed


@cache
def _project() -> dict[str, dict[str, dict[str, dict[str, list[str]]]]]:
    found: dict[str, dict[str, dict[str, dict[str, list[str]]]]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return found


OURS: dict[str, Check] = {
    "tau2_lightning.train": compose,
    "tau2_lightning.serve": compose,
    "tau2_lightning.rollout.proxy": compose,
    "tau2_lightning.sft": _sft,
    "tau2_lightning.export": _export,
    "tau2_lightning.report": _report,
    "tau2_lightning.evaluation.report": _compare,
    "pytest": _pytest,
    "pip": _pip,
}
PROGRAMS: dict[str, Check] = {
    "make": _make,
    "pytest": _pytest,
    "pip": _pip,
    "bash": _bash,
    "source": _source,
    "tau2": _script("tau2"),
    "vllm": _script("vllm"),
}
