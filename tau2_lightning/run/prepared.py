"""A run from Python: all that the main job makes beside its Trainer, which is the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.environment import check_models
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.ranks import Job, global_rank
from tau2_lightning.module import GRPOModule
from tau2_lightning.telemetry.warned import warn

from .algorithm import instantiate_algorithm
from .compose import load_config
from .forecast import warnings_of
from .instantiate import instantiate_callbacks
from .loggers import csv
from .notices import notices
from .opening import open_run
from .policy import prepare_policy
from .router_replay import with_router_replay
from .setup import build_strategy

if TYPE_CHECKING:
    from tau2_lightning.strategy import ArchonStrategy


class PreparedRun:
    """A checked configuration with its folder and its policy. The methods make what a Trainer takes, each time anew.

    ``config`` is the configuration, ``root`` the run's folder, ``policy`` a Hugging Face folder, ``algorithm`` the
    algorithm; ``checkpoint`` is what ``ckpt_path`` names (None without it), for ``trainer.fit(ckpt_path=...)``.
    ``close``, or the end of a ``with`` block, ends the engine and gives the folder free.
    """

    def __init__(self, config: RunConfig) -> None:
        self._open = ExitStack()
        opened = self._open.enter_context(open_run(config, heeds=False))
        try:
            self.algorithm: PolicyGradient = instantiate_algorithm(config)
            if global_rank() == 0:
                check_models(config)
            self.policy: Path = prepare_policy(config, opened.clock, opened.folder, opened.checkpoint)
            self.config: RunConfig = with_router_replay(config, self.policy)
        except BaseException:
            self._open.close()
            raise
        self.folder, self.checkpoint, self._clock = opened.folder, opened.checkpoint, opened.clock
        self.root: Path = opened.folder.root

    def module(self) -> GRPOModule:
        """The policy under the configured algorithm and optimizer."""
        return GRPOModule.of(self.config, self.policy, self.algorithm)

    def datamodule(self) -> Tau2DataModule:
        """What plays episodes; its engine starts with the first validation or training, and ends with the run."""
        data = Tau2DataModule(self.config, self.policy, self.algorithm, run_dir=self.root, clock=self._clock)
        self._open.callback(data.close)
        return data

    def strategy(self) -> ArchonStrategy:
        """The strategy that ``allocation_mode`` and ``actor`` describe. A Trainer needs ``devices`` to match."""
        return build_strategy(self.config)

    def callbacks(self) -> list[Callback]:
        """The section ``callbacks``: checkpoints, results, ``rollouts/``, progress on the screen, and so on."""
        return instantiate_callbacks(self.config, self.folder)

    def logger(self) -> CSVLogger:
        """``metrics/metrics.csv`` in the run's folder, which the report reads."""
        return csv(self.folder, self.config)

    def close(self) -> None:
        """End the engine and give the folder free. Safe to call twice."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare(words: Sequence[str] = ()) -> PreparedRun:
    """Everything of a run but its Trainer, from ``words`` as the command line has them (``["domain=telecom"]``).

    Composes and checks the configuration, makes the run's folder and takes it, and prepares the policy: fetched, or the
    tiny one, whose warm start may take minutes the first time. Seeds Python, NumPy and torch with ``seed``. Signals are
    left alone. Warns of words that are arguments of the command's own Trainer: here they have no effect. Raises
    ConfigError that lists what is wrong.
    """
    config = load_config(words)
    if config.scheduler.type != "local" and Job.current() is None:
        problem = "submits the command `python -m tau2_lightning.train`, and a script is none"
        remedy = "Submit the script itself, with srun or torchrun, and leave this out"
        raise ConfigError([Violation("scheduler.type", config.scheduler.type, problem, remedy)])
    if global_rank() == 0:
        for notice in notices(config):
            print(f"notice: {notice}")
    L.seed_everything(config.seed, workers=True, verbose=False)
    run = PreparedRun(config)
    if global_rank() == 0:
        for warning in [*_for_another_trainer(words), *warnings_of(run.config, run.policy)]:
            warn(warning)
    return run


def _for_another_trainer(words: Sequence[str]) -> Iterator[str]:
    arguments = inspect.signature(L.Trainer.__init__).parameters
    for word in words:
        section, _, name = word.lstrip("+").partition("=")[0].partition(".")
        if section == "trainer" and name in arguments:
            yield f"{word} is of the command's own Trainer and has no effect here: give {name} to yours"
