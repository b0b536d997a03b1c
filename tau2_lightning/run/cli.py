"""The command line of train, sft and serve: Hydra's options, and one report of all problems of the configuration.

A single run is composed here and not by Hydra's own runner: Hydra would log, change folders and write files, and
Lightning would start further ranks by Hydra's rules. So ``hydra.*`` words have an effect with --multirun, --cfg and
--info; a single run takes ``hydra.searchpath`` alone.
"""

from __future__ import annotations

import argparse
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tau2_lightning.config.redaction import hide_in_tracebacks
from tau2_lightning.config.secrets import shown_secrets
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.secret_words import words_of_parent
from tau2_lightning.telemetry.quiet import quiet_notices

from .exit import exit_code
from .words import is_hydras, quoted, refuse_unreadable


@dataclass(frozen=True)
class Command:
    """A program that takes words of ``conf/``. ``module`` is the argument of ``python -m``, ``about`` is the first part
    of its help.

    ``work`` gets the plain words and returns the exit code. ``repeatable``: --multirun may start it several times.
    ``completed`` writes a word out that the program takes in a shorter form.
    """

    module: str
    about: str
    work: Callable[[list[str]], int]
    repeatable: bool = True
    completed: Callable[[str], str] = str


def run_command(command: Command, argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 done, 1 failed, 2 bad configuration, 130 interrupted, 143
    terminated, 129 its terminal closed; of a multirun the highest of its jobs.
    """
    if argv is not None:
        return exit_code(lambda: _dispatch(command, list(argv)))
    hide_in_tracebacks()
    given = sys.argv[1:]
    for key in shown_secrets(given) if global_rank() == 0 else ():
        where = "every user of this machine sees it in the list of processes"
        print(f"warning: {key} is on the command line, where {where}; write '{key}=${{oc.env:NAME}}'", file=sys.stderr)
    return exit_code(lambda: _dispatch(command, [*given, *words_of_parent()]))


def _dispatch(command: Command, argv: list[str]) -> int:
    refuse_unreadable(argv)
    quiet_notices()
    parser = _parser(command)
    options = parser.parse_intermixed_args(argv)
    words = [command.completed(word) for word in options.words]
    if options.config_dir is not None:
        words.append(_search_path(options.config_dir))
    if options.help:
        from .help import print_help

        print_help(command.about, parser.format_help(), words)
    elif options.cfg is not None or options.info is not None:
        from . import show

        if options.cfg is not None:
            show.configuration(words, options.cfg, options.package, options.resolve)
        else:
            show.information(words, options.info)
    elif options.multirun or "hydra.mode=MULTIRUN" in words:
        from .multirun import multirun

        if not command.repeatable:
            raise _refused("--multirun", "it serves until it is stopped", "Start one command for each")
        return multirun(command.module, [word for word in words if not word.startswith("hydra.mode=")])
    else:
        _refuse_hydras(words)
        return command.work(words)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _refused("command line", message, "--help lists the options")


def _parser(command: Command) -> _Parser:
    parser = _Parser(prog=f"python -m {command.module}", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*", metavar="key=value", help="values other than the defaults of conf/")
    parser.add_argument("-h", "--help", action="store_true", help="show this help; with KEYs: explain these keys")
    kinds = ("job", "hydra", "all")
    parser.add_argument("-c", "--cfg", choices=kinds, help="print the composed configuration, or that of Hydra")
    parser.add_argument("-p", "--package", metavar="KEY", help="with --cfg: only this section")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: replace interpolations by their values")
    about = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    parser.add_argument("-i", "--info", nargs="?", const="all", choices=about, help="print how Hydra composes")
    parser.add_argument("-r", "--run", action="store_true", help="start one run (the default)")
    repeats = "start one run for each combination of values, as in seed=1,2,3" if command.repeatable else SUPPRESS
    parser.add_argument("-m", "--multirun", action="store_true", help=repeats)
    parser.add_argument("-cd", "--config-dir", metavar="DIR", help="a folder with further groups, such as experiment/")
    return parser


def _search_path(folder: str) -> str:
    """As a word, so that ranks and jobs with the same words find the folder too."""
    path = Path(folder).absolute()
    if not path.is_dir():
        raise _refused("--config-dir", "no such folder", f"{path} must hold groups such as experiment/")
    return f"hydra.searchpath=[{quoted(f'file://{path}')}]"


def _refuse_hydras(words: Sequence[str]) -> None:
    idle = [word for word in words if is_hydras(word) and not word.startswith(("hydra.searchpath=", "hydra.mode="))]
    if idle:
        remedy = "Add --multirun, or leave it out"
        problem = "has no effect on a single run"
        raise ConfigError([Violation(*word.partition("=")[::2], problem, remedy) for word in idle])


def _refused(key: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError([Violation(key, "", problem, remedy)])
