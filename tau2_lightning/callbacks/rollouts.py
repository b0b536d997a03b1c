"""Writes every episode of training and validation into ``rollouts/`` of the run folder, as they are played."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor

from tau2_lightning.config.kept import KeptBound
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import secret_values
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.policy.loading import load_tokenizer
from tau2_lightning.rollout_files.vocabulary import vocabulary_file
from tau2_lightning.rollout_files.writer import RolloutWriter
from tau2_lightning.strategy.outputs import TokenOutputs

from .seams import data_of, module_of, strategy_of


class RolloutFiles(L.Callback):
    """One file for each batch and each validation, and one for each rank's log-probs of a batch (docs/report.md).

    ``keep`` bounds them (`KeptBound`): ``all``, ``none``, ``500steps``, ``20GiB``. A thread writes them.
    """

    def __init__(self, keep: str, folder: RunFolder, config: RunConfig) -> None:
        self.bound, self.folder, self.config = KeptBound.parse(keep), folder, config
        self.writer: RolloutWriter | None = None
        self._seen: list[tuple[MicroBatch, Tensor]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen to what rank 0 plays. Lightning calls this around each of fit and validate."""
        if self.writer is not None or not self.bound.keeps:
            return
        rollouts, rank = data_of(trainer).rollouts, global_rank()
        self.writer = RolloutWriter(
            self.folder.root,
            self.bound,
            rollouts.algorithm,
            start=self.folder.start,
            rank=rank,
            secrets=secret_values(self.config),
        )
        if rank == 0:
            rollouts.played.append(self.writer.write)
            if self.config.mode == "train":
                self.writer.continue_from(self.folder.batches_done, validates=self.folder.validates)
            self.writer.run(partial(self._write_vocabulary, rollouts.policy), "the text of the tokens")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        mesh = strategy_of(trainer).compute.mesh
        # Ranks along t and c compute the same outputs.
        if self.writer is not None and mesh.coordinate("tp") == 0 and mesh.coordinate("cp") == 0:
            strategy_of(trainer).compute.watch = self._look

    def _look(self, outputs: TokenOutputs, microbatch: MicroBatch) -> None:
        self._seen.append((microbatch, outputs.logprobs.detach()))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seen, self._seen = self._seen, []
        if self.writer is None or not seen:
            return
        scores: dict[int, Any] = {}
        for microbatch, logprobs in seen:
            values = logprobs.float().cpu().numpy()
            masks = microbatch["loss_mask"].cpu().numpy()
            for row_id, mask, line in zip(microbatch["row_ids"].tolist(), masks, values, strict=True):
                if row_id >= 0 and mask.any():
                    scores[row_id] = line[: len(mask)][mask].astype(np.float32)
        # The module has counted this batch already.
        self.writer.write_scores(module_of(pl_module).weights_version - 1, scores)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A resumed run does not play the batches of the checkpoint again: their episodes come to the disk first."""
        if self.writer is not None:
            self.writer.settle()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _write_vocabulary(self, policy: Path, folder: Path) -> None:
        vocabulary_file(folder, load_tokenizer(policy, self.config.actor.chat_template))
