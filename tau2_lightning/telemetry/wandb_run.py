"""A run on W&B: numbers, tables of dialogues, artifacts, and a summary; offline without a key."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from tau2_lightning.config.flat import flattened

from .dashboards import How, ShownDialogue

STEP = "trainer/global_step"  # the axis: Lightning logs it beside every number


class RunWandb(WandbLogger):
    """Lightning's WandbLogger as a `Dashboard`. ``scores`` are the names of pass^1; ``options`` are WandbLogger's.

    Configurations are flattened: ``actor.optimizer.lr`` is a column of the table of runs, as it is a word of the
    command line.
    """

    def __init__(self, *, scores: Sequence[str] = (), **options: Any) -> None:
        super().__init__(**options)
        self._scores = tuple(scores)
        if self._wandb_init.get("anonymous") is None:
            self._wandb_init.pop("anonymous", None)  # W&B warns of this argument, whatever its value

    @property
    def experiment(self) -> Any:
        """The W&B run. The first call on rank 0 begins it, and defines its axis and the numbers of its summary."""
        if self._experiment is not None:
            return super().experiment
        run = super().experiment
        if self._experiment is not None:
            for name in self._scores:
                run.define_metric(name, step_metric=STEP, summary="max,last")
            for name in ("dialogues/train", "dialogues/validate"):
                run.define_metric(name, step_metric=STEP)
        return run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Add to the configuration of the run."""
        super().log_hyperparams(flattened(vars(params) if isinstance(params, Namespace) else params))

    @rank_zero_only
    def show_dialogues(self, kind: str, step: int, dialogues: Sequence[ShownDialogue]) -> None:
        """A table ``dialogues/<kind>``, a row for each."""
        self.log_table(
            f"dialogues/{kind}",
            columns=ShownDialogue.columns(),
            data=[dialogue.row() for dialogue in dialogues],
            step=step,
        )

    @rank_zero_only
    def keep_files(
        self, kind: str, name: str, paths: Sequence[Path], *, aliases: Sequence[str] = (), how: How = "upload"
    ) -> None:
        """An artifact ``<name>-<id of the run>`` of type ``kind``. Files are not copied, as they do not change; folders
        are, as they may make room for newer ones while they are uploaded."""
        import wandb

        run = self.experiment
        artifact = wandb.Artifact(f"{name}-{run.id}", type=kind, metadata={"paths": [str(path) for path in paths]})
        for path in paths:
            if how == "reference":
                artifact.add_reference(path.absolute().as_uri(), checksum=False)
            elif path.is_dir():
                artifact.add_dir(str(path), policy="mutable", skip_cache=True)
            else:
                artifact.add_file(str(path), policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=["latest", *aliases])

    @rank_zero_only
    def keep_summary(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of the run's summary, which the table of runs shows as columns."""
        self.experiment.summary.update(dict(values))

    def where(self) -> str:
        """The project, and for an offline run the command that uploads it."""
        project = "/".join(filter(None, [self._wandb_init.get("entity"), self._project]))
        if self._offline:
            return f"W&B project {project}, offline; upload it with: wandb sync {self._save_dir}/wandb/offline-run-*"
        return f"W&B project {project}, run {self._id}"
