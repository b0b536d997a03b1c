"""The jobs of a sweep: each combination of ``seed=1,2,3`` and the like, with its own words and its own run folder.

The run folders lie side by side in one named after ``trial_name``; their own names have the job's number added,
unless the sweep gives each job a trial name.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import is_secret_word
from tau2_lightning.errors import ConfigError, Violation

from .compose import hydra_program, load_config
from .words import JOB, as_text, hydra_words, is_hydras, quoted

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from hydra.core.override_parser.types import Override


@dataclass(frozen=True)
class SweepJob:
    """One run of the sweep: its own words, and the resulting trial."""

    words: tuple[str, ...]
    config: RunConfig

    @property
    def folder(self) -> Path:
        return self.config.output_dir / self.config.experiment_name / str(self.config.trial_name)

    def named(self, sweep: str, number: int) -> SweepJob:
        """The job as number ``number`` of the sweep of this name."""
        named = {"experiment_name": f"{self.config.experiment_name}/{sweep}", "trial_name": f"{sweep}-{number}"}
        words = (f"{key}={quoted(value)}" for key, value in named.items())
        return replace(self, words=(*self.words, *words), config=self.config.model_copy(update=named))


def sweep(words: Sequence[str], about_hydra: Sequence[str] = ()) -> list[SweepJob]:
    """The jobs that ``words`` make, checked and named. Raises ConfigError listing every violation of any job."""
    with hydra_program() as hydra:
        overrides = _parsed(hydra, [*_swept_by_files(hydra, words, about_hydra), *map(sweepable, words)])
        _refuse_continuous(overrides)
        (combinations,) = BasicSweeper.split_arguments(overrides, None)
    paths = search_paths(about_hydra)
    jobs: list[SweepJob] = []
    found: dict[str, Violation] = {}
    for combination in combinations:
        try:
            config = load_config([*combination, *paths], check=False)
            if not config.plan:
                load_config([*combination, *paths])
            with hydra_program():
                written = hydra_words([*combination, *paths])
            jobs.append(SweepJob(tuple(word for word in written if not is_hydras(word)), config))
        except ConfigError as error:
            found |= {str(violation): violation for violation in error.violations}
    if found:
        raise ConfigError(list(found.values()))
    if not jobs:
        raise ConfigError([Violation("--multirun", " ".join(words), "makes no job", "Give a sweep at least one value")])
    return _named(jobs, swept=any(one.key_or_group == "trial_name" and one.is_sweep_override() for one in overrides))


def _named(jobs: Sequence[SweepJob], *, swept: bool) -> list[SweepJob]:
    """Every job with a run folder of its own."""
    if not swept:
        # Two sweeps may start within one second.
        base = jobs[0].config.trial_name or f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(3)}"
        return [job.named(base, number) for number, job in enumerate(jobs)]
    if len({job.folder for job in jobs}) < len(jobs):
        problem = "two jobs of the sweep would share a run folder"
        remedy = "Give one trial_name, which the jobs' numbers are added to, or a name for each job"
        raise ConfigError([Violation("trial_name", jobs[0].config.trial_name, problem, remedy)])
    return list(jobs)


def _parsed(hydra: Hydra, words: Sequence[str]) -> list[Override]:
    return OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(list(words))


def same_for_all(hydra: Hydra, words: Sequence[str], about_hydra: Sequence[str]) -> list[str]:
    """The words that are no sweep and no secret, for Hydra: they may choose a file that configures Hydra."""
    parsed = _parsed(hydra, [sweepable(word) for word in words if not (is_hydras(word) or is_secret_word(word))])
    same = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
    return [word for word in hydra_words([*same, *search_paths(about_hydra)]) if not is_hydras(word)]


def _swept_by_files(hydra: Hydra, words: Sequence[str], about_hydra: Sequence[str]) -> list[str]:
    """Sweeps of ``hydra.sweeper.params``, such as an experiment's file may hold.

    Refuses another sweeper: a run returns an exit code, and no value that could guide a search.
    """
    for word in about_hydra:
        key, _, value = word.partition("=")
        if (key.lstrip("+") == "hydra/sweeper" and value != "basic") or key.startswith("hydra.sweeper.max_batch_size"):
            raise ConfigError([Violation(key, value, "only all combinations can be run", "Leave it out")])
    try:
        same = same_for_all(hydra, words, about_hydra)
    except ConfigError:
        same = []  # the jobs report the errors
    config = hydra.compose_config(JOB, [*about_hydra, *same], RunMode.MULTIRUN, with_log_configuration=False)
    params: dict[str, Any] = config.hydra.sweeper.get("params") or {}
    return [f"{key}={value}" for key, value in params.items()]


def _refuse_continuous(overrides: Sequence[Override]) -> None:
    wrong = [one for one in overrides if one.is_sweep_override() and not one.is_discrete_sweep()]
    if wrong:
        problem, remedy = "is no list of values", "Write key=value,value,..."
        raise ConfigError([Violation(one.get_key_element(), one.input_line, problem, remedy) for one in wrong])


def search_paths(about_hydra: Sequence[str]) -> list[str]:
    """The words that name folders of further groups."""
    return [word for word in about_hydra if word.startswith("hydra.searchpath=")]


def sweepable(word: str) -> str:
    """`as_text` of each of the word's values: an allocation holds no comma, so that commas separate allocations. A
    secret is one value.
    """
    key, _, value = word.partition("=")
    if is_secret_word(word) and "," in value:
        return f"{key}={quoted(value)}"
    if key != "allocation_mode" or "'" in value or '"' in value:
        return as_text(word)
    return f"{key}={','.join(map(quoted, value.split(',')))}"


def parent_of(jobs: Sequence[SweepJob]) -> Path:
    """The folder that all run folders of a sweep lie in."""
    return Path(os.path.commonpath([job.folder.parent.absolute() for job in jobs]))
