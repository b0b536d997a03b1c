"""The opening of a run: its folder, the lock on it, the checkpoint that it continues from, and signals."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tau2_lightning.config.allocation import Allocation
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, InfrastructureFault, Violation
from tau2_lightning.launch.lock import RunLock
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.launch.stopping import Stopped, StopSignals
from tau2_lightning.strategy.saving import remove_leftovers
from tau2_lightning.telemetry.phases import PhaseClock

from .checkpoints import continued, resolve_checkpoint
from .folder_rules import check_reuse
from .notices import notices
from .setup import configure_logging


@dataclass(frozen=True)
class OpenRun:
    """An open run folder, held by this process, and the checkpoint to load (None: none).

    ``clock`` counts the phases of the run, and ``stops`` heeds signals by them.
    """

    folder: RunFolder
    checkpoint: str | None
    clock: PhaseClock
    stops: StopSignals


@contextmanager
def open_run(config: RunConfig, *, heeds: bool = True) -> Iterator[OpenRun]:
    """Take the run's folder for this process and look up its checkpoint. ``heeds``: signals end the run in order;
    otherwise they do what they did before.

    Raises ConfigError when another process holds the folder or a server of ``rollout.engine_urls``, when the folder
    cannot be written or holds a run that this one would write over, and as `resolve_checkpoint` does. Ranks above 0
    share what rank 0 holds.
    """
    clock = PhaseClock()
    alone = Allocation.parse(config.allocation_mode).training_spec().world == 1
    with ExitStack() as stack:
        stops = StopSignals(config.trainer.grace_seconds, lambda: clock.current, alone=alone, leads=global_rank() == 0)
        if heeds:
            clock.entered = stack.enter_context(stops).entered
        if global_rank() == 0:
            root = RunFolder.name(config)
            _make(root, "output_dir", config.output_dir)
            _make(config.cache_dir, "cache_dir", config.cache_dir)
            stack.enter_context(RunLock(root))
            # Under the lock: another start may have trained and ended here since the configuration was checked.
            refused = list(check_reuse(config))
            if refused:
                raise ConfigError(refused)
            for url in dict.fromkeys(config.rollout.engine_urls):
                stack.enter_context(_claim(config, url))
            folder = RunFolder.create(config, root, notices(config))
            remove_leftovers(folder.checkpoints)
            remove_leftovers(folder.exports)
        else:
            folder = RunFolder.create(config)
        configure_logging(folder)
        checkpoint = resolve_checkpoint(config, folder)
        if config.mode == "train":
            folder = continued(folder, checkpoint)
        try:
            yield OpenRun(folder, checkpoint, clock, stops)
        except RuntimeError as error:  # of a collective: its other end is gone
            if stops.lost:
                raise InfrastructureFault("rank", "lost", stops.lost) from error
            raise
        except KeyboardInterrupt as error:
            # Libraries raise their own on the way; the exit code is that of the signal.
            if stops.asked is not None and not isinstance(error, Stopped):
                raise Stopped(stops.asked) from error
            raise


def _claim(config: RunConfig, url: str) -> RunLock:
    """The lock on a server that is not ours: two runs that sync weights into it would train on each other's tokens.

    It is seen by every run with this ``cache_dir``. What others do to the server shows in the version of its weights.
    """
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    folder = config.cache_dir / "engines" / name
    _make(folder, "cache_dir", config.cache_dir)
    return RunLock(folder, "rollout.engine_urls", url)


def _make(folder: Path, key: str, value: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{folder} cannot be made: {error.strerror or error}"
        remedy = "Name a folder on a disk with room that this user may write to"
        raise ConfigError([Violation(key, str(value), problem, remedy)]) from error
