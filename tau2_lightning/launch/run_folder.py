"""The folder of one run, with the names of all files in it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import without_secrets
from tau2_lightning.errors import ConfigError, Violation

from .manifest import damage
from .ranks import global_rank, share_under_torchrun, under_torchrun

# Written last: a checkpoint folder with this file is complete.
META = "meta.pt"
# Ranks that rank 0 starts run its command line again; they must find its folder, not make one with a later time. The
# value holds the id of rank 0's process, because other processes that inherit the variable belong to another run.
_SHARED = "TAU2_LIGHTNING_RUN_DIR"


@dataclass(frozen=True)
class RunFolder:
    """Paths below ``root``: logs of the children, checkpoints, exported policies, tau2 results files.

    Several starts may use one folder (a resumed run, a validation). From the second on, files that belong to one start
    have its number ``start`` in their names, so that earlier files are not overwritten. A start that trains continues
    the metrics of the starts before it; ``batches_done`` is the number of training batches that its checkpoint holds,
    ``validates`` says that it begins with the validation after the last of them.
    """

    root: Path
    start: int = 1
    batches_done: int = 0
    validates: bool = False

    @classmethod
    def create(cls, config: RunConfig, root: Path | None = None, notices: Sequence[str] = ()) -> RunFolder:
        """Make the run's folder and write the resolved configuration into it, below its ``notices``; ranks above 0 find
        rank 0's folder.

        ``root`` is the folder, by default the one that ``name`` gives. Raises ConfigError where it cannot be written.
        """
        if global_rank():
            folder = cls(cls._of_first_rank(config))
            folder.logs.mkdir(parents=True, exist_ok=True)
            return folder
        root = root or cls.name(config)
        if config.trial_name is None and under_torchrun():
            share_under_torchrun("run folder", str(root))
        folder = cls(root, start=1 + len(list(root.glob("config*.yaml"))))
        head = "".join(f"# notice: {notice}\n" for notice in notices)
        content = yaml.safe_dump(without_secrets(config), sort_keys=False)
        with _writing(root):
            for path in (folder.logs, folder.checkpoints, folder.results):
                path.mkdir(parents=True, exist_ok=True)
            (root / folder.numbered("config", ".yaml")).write_text(head + content)
        os.environ[_SHARED] = f"{os.getpid()}:{folder.root}"
        return folder

    @staticmethod
    def name(config: RunConfig) -> Path:
        """Path of the run's folder, which need not exist: named after ``trial_name``, the Slurm job or the time."""
        job = os.environ.get("SLURM_JOB_ID") if "SLURM_PROCID" in os.environ else None
        trial = config.trial_name or (f"job-{job}" if job else time.strftime("%Y-%m-%d_%H-%M-%S"))
        return (config.output_dir / config.experiment_name / trial).absolute()

    @classmethod
    def _of_first_rank(cls, config: RunConfig) -> Path:
        parent, _, root = os.environ.get(_SHARED, "").partition(":")
        if parent == str(os.getppid()):
            return Path(root)
        if config.trial_name is None and under_torchrun():
            return Path(share_under_torchrun("run folder", None))
        return cls.name(config)

    def numbered(self, stem: str, suffix: str = "") -> str:
        """A file name of this start: ``stem`` with the start's number (from the second on), then ``suffix``."""
        return f"{stem}{suffix}" if self.start == 1 else f"{stem}-{self.start}{suffix}"

    @property
    def logs(self) -> Path:
        """Logs of child processes."""
        return self.root / "logs"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of training."""
        return self.root / "checkpoints"

    @property
    def exports(self) -> Path:
        """The policy during training, as Hugging Face folders."""
        return self.root / "exports"

    @property
    def results(self) -> Path:
        """tau2 results files of validations."""
        return self.root / "results"

    @property
    def policy(self) -> Path:
        """The trained policy as a Hugging Face folder."""
        return self.root / "policy"

    @property
    def report(self) -> Path:
        """The report of this start."""
        return self.root / self.numbered("report", ".json")

    def finished_checkpoints(self) -> list[Path]:
        """The complete checkpoints, the newest first."""
        finished = [path for path in self.checkpoints.glob("*.ckpt") if (path / META).is_file()]
        return sorted(finished, key=lambda path: path.stat().st_mtime, reverse=True)

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint whose files have their sizes, or None."""
        return next((path for path in self.finished_checkpoints() if damage(path, digests=False) is None), None)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Raises an OSError as a ConfigError that names the folder and the reason."""
    try:
        yield
    except OSError as error:
        problem = f"the run folder {root} cannot be written: {error.strerror or error}"
        remedy = "Name a folder on a disk with room that this user may write to"
        raise ConfigError([Violation("output_dir", str(root.parent.parent), problem, remedy)]) from error
