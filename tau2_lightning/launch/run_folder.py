"""The folder of one run: where everything that a run leaves lies. The one place that decides on file names."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import without_secrets

from .ranks import global_rank, share_under_torchrun, under_torchrun

# Written last: a checkpoint folder that holds it was written to its end.
META = "meta.pt"
# Ranks that rank 0 starts re-run its command line; they must find its folder, not make one with a later time. With the
# process that said so, since whatever else inherits the variable belongs to another run.
_SHARED = "TAU2_LIGHTNING_RUN_DIR"


@dataclass(frozen=True)
class RunFolder:
    """Paths below ``root``: logs of the children, checkpoints, exported policies, tau2 results files.

    A folder may be used by several starts (a resumed run, a validation): what belongs to one start carries its
    number ``start`` from the second on, so that nothing an earlier one left is overwritten.
    """

    root: Path
    start: int = 1

    @classmethod
    def create(cls, config: RunConfig) -> RunFolder:
        """Make the run's folder and write the resolved configuration into it; ranks above 0 find the first one's."""
        if global_rank():
            folder = cls(cls._of_first_rank(config))
            folder.logs.mkdir(parents=True, exist_ok=True)
            return folder
        root = cls.name(config)
        if config.trial_name is None and under_torchrun():
            share_under_torchrun("run folder", str(root))
        folder = cls(root, start=1 + len(list(root.glob("config*.yaml"))))
        for path in (folder.logs, folder.checkpoints, folder.results):
            path.mkdir(parents=True, exist_ok=True)
        (root / folder.numbered("config", ".yaml")).write_text(yaml.safe_dump(without_secrets(config), sort_keys=False))
        os.environ[_SHARED] = f"{os.getpid()}:{folder.root}"
        return folder

    @staticmethod
    def name(config: RunConfig) -> Path:
        """Where the run's folder lies, or will lie: named after ``trial_name``, or after the Slurm job or the time."""
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
        """A name of this start: ``stem``, with the start's number from the second on."""
        return f"{stem}{suffix}" if self.start == 1 else f"{stem}-{self.start}{suffix}"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def policy(self) -> Path:
        """The trained policy as a Hugging Face folder."""
        return self.root / "policy"

    @property
    def report(self) -> Path:
        return self.root / self.numbered("report", ".json")

    def finished_checkpoints(self) -> list[Path]:
        """The checkpoints that were written to their end, the newest first."""
        finished = [path for path in self.checkpoints.glob("*.ckpt") if (path / META).is_file()]
        return sorted(finished, key=lambda path: path.stat().st_mtime, reverse=True)

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end, or None."""
        return next(iter(self.finished_checkpoints()), None)
