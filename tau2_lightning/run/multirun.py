"""``--multirun``: the jobs of a sweep, started by Hydra's launcher.

Each run is its own process, because an engine, process groups and the end of a run belong to a process. With
Hydra's basic launcher the runs follow each other; ``hydra/launcher=...`` takes what is installed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode

from tau2_lightning.config.secrets import is_secret_word
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.ranks import under_torchrun
from tau2_lightning.launch.secret_words import split_words
from tau2_lightning.launch.watchdog import die_with_parent

from .compose import hydra_errors, hydra_program
from .sweep import SweepJob, parent_of, same_for_all, search_paths, sweep, sweepable
from .words import JOB, is_hydras, quoted

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

REPORT_SECONDS = 600.0


@dataclass(frozen=True)
class RunChild:
    """The function Hydra's launcher calls for each job: runs ``python -m module`` and returns its exit code.

    ``more`` are words of every job that Hydra must not know: secrets, since Hydra prints words and its launchers may
    store them; and where to search for further groups. Secrets reach the job in a variable.
    """

    module: str
    more: tuple[str, ...]

    def __call__(self, _: DictConfig) -> int:
        words, secret = split_words([*HydraConfig.get().overrides.task, *self.more])
        command = [sys.executable, "-m", self.module, *words]
        # In a session of its own, so that Ctrl-C reaches it once, from here.
        process = subprocess.Popen(command, env=os.environ | secret, start_new_session=True, preexec_fn=die_with_parent)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise
        return code if code >= 0 else 128 - code


def multirun(module: str, words: Sequence[str]) -> int:
    """Run ``python -m module`` for each combination of the words' values; returns the highest exit code.

    Raises ConfigError, before anything starts, that lists the violations of all jobs.
    """
    if under_torchrun():
        problem = "each rank of torchrun would start every run"
        raise ConfigError([Violation("--multirun", "", problem, "Start it without torchrun")])
    about_hydra = [word for word in words if is_hydras(word)]
    more = (*search_paths(about_hydra), *(sweepable(word) for word in words if is_secret_word(word)))
    with hydra_errors(words):
        jobs = sweep([word for word in words if not is_hydras(word)], about_hydra)
        shown = [[word for word in job.words if not is_secret_word(word)] for job in jobs]
        about_hydra = [f"hydra.sweep.dir={quoted(str(parent_of(jobs)))}", *about_hydra, "hydra.mode=MULTIRUN"]
        with hydra_program() as hydra:
            same = same_for_all(hydra, words, about_hydra)
            codes = _launch(hydra, RunChild(module, more), [*about_hydra, *same], shown)
    for number, (job, code) in enumerate(zip(jobs, codes, strict=True)):
        outcome = "done" if code == 0 else f"ended with exit code {code}"
        print(f"job {number} ({job.folder.name}): {outcome}", file=sys.stderr)
    _pool(jobs)
    return max(codes)


def _pool(jobs: Sequence[SweepJob]) -> None:
    """One report over the runs that have logged something, in the folder that they lie in; its table is printed.

    A process of its own, as each run: this room does not know that one.
    """
    runs = [str(job.folder) for job in jobs if (job.folder / "metrics" / "metrics.csv").is_file()]
    if len(runs) < 2:
        return
    out = parent_of(jobs) / "report.html"
    command = [sys.executable, "-m", "tau2_lightning.report", *runs, "--pool", "--out", str(out)]
    try:
        done = subprocess.run(command, timeout=REPORT_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        done = False
    if not done:
        print(f"warning: no report over the runs was made; make it with: {' '.join(command)}", file=sys.stderr)


def _launch(hydra: Hydra, run: RunChild, words: list[str], jobs: Sequence[Sequence[str]]) -> list[int]:
    """The exit codes of ``jobs``, started by the launcher that ``words`` configure."""
    config = hydra.compose_config(JOB, words, RunMode.MULTIRUN, with_log_configuration=True)
    callbacks = Callbacks(config)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    callbacks.on_multirun_start(config=config, config_name=JOB)
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=run, config=config)
    returned = launcher.launch(jobs, initial_job_idx=0)
    callbacks.on_multirun_end(config=config, config_name=JOB)
    return [int(one.return_value) for one in returned]
