"""The policy as Hugging Face folders during training: every n batches, and the best, written in the background."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import lightning as L
import orjson

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.durable import write_durably
from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.policy.loading import load_tokenizer
from tau2_lightning.policy.written import PolicyFiles
from tau2_lightning.strategy.from_rank_zero import FromRankZero, Ranks
from tau2_lightning.strategy.write_faults import check_room, naming_write_faults
from tau2_lightning.telemetry.warned import warn

from .retention import BEST, validated_score
from .seams import module_of, strategy_of

SECONDS = 1800.0  # for writing one export


class PolicyExports(L.Callback):
    """Writes ``exports/step<n>`` after every ``every_n_steps`` training batches (None: never), and when a validation
    scores at least as high as all before it.

    The newest ``keep`` stay (-1: all; 0: none is written), and the best by validated pass^1, which
    ``exports/best.json`` names. Training goes on once the weights are copied to the CPU, in the dtype in which they are
    stored; after a validation that was the best it waits until that export is written. One is written at a time. An
    error of writing ends the run at the next export or at the end of training, which wait for it.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, *, every_n_steps: int | None, keep: int) -> None:
        self.folder, self.config = folder.exports, config
        self.every_n_steps, self.keep = every_n_steps if keep and config.mode == "train" else None, keep
        self._executor: ThreadPoolExecutor | None = None
        self._pending: tuple[Path, Future[None]] | None = None
        self._best: dict[str, Any] = {}
        self._exported: dict[int, str] = {}  # names by the version of the weights

    # -- Lightning's hooks --------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        with suppress(OSError, ValueError):
            best = orjson.loads((self.folder / BEST).read_bytes())
            self._best = best if (self.folder / best["export"]).is_dir() else {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every_n_steps is not None and module_of(pl_module).weights_version % self.every_n_steps == 0:
            self._export(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        version = module_of(pl_module).weights_version
        if self.every_n_steps is None or not version:
            return
        score = FromRankZero(cast("Ranks", trainer.strategy)).json(lambda: self._better_score(pl_module))
        if score is None:
            return
        name = self._exported.get(version) or self._export(trainer, pl_module)
        best = {"export": name, "pass^1": score, "weights_version": version}
        FromRankZero(cast("Ranks", trainer.strategy)).json(lambda: self._note(best))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        FromRankZero(cast("Ranks", trainer.strategy)).json(self._wait)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._wait()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        try:
            self._wait()
        except InfrastructureFault as fault:  # the error that ended the run is the one to show
            warn(str(fault))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _better_score(self, pl_module: L.LightningModule) -> float | None:
        """The score of the newest validation, if it is of the present weights and none was better."""
        evaluation = module_of(pl_module).last_evaluation
        score = validated_score(evaluation)
        present = evaluation.get("weights_version") == module_of(pl_module).weights_version
        return score if score is not None and present and score >= self._best.get("pass^1", -1.0) else None

    def _note(self, best: dict[str, Any]) -> None:
        """Name the best export once it is written."""
        self._wait()
        self._best = best
        write_durably(self.folder / BEST, orjson.dumps(best, option=orjson.OPT_INDENT_2))
        self._remove_others()

    def _export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> str:
        """Copy the policy and begin to write it; returns its name. Collective."""
        ranks = FromRankZero(cast("Ranks", trainer.strategy))
        ranks.json(self._wait)
        name = f"step{trainer.global_step}"
        files = strategy_of(trainer).snapshot()
        ranks.json(lambda: check_room(self.folder / name, sum(tensor.nbytes for _, tensor in files.tensors)))
        self._exported[module_of(pl_module).weights_version] = name
        if trainer.is_global_zero:
            policy = str(getattr(pl_module, "policy_path", self.config.actor.path))
            tokenizer = load_tokenizer(policy, self.config.actor.chat_template)
            self._executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix="export")
            self._pending = self.folder / name, self._executor.submit(self._write, files, self.folder / name, tokenizer)
        return name

    def _write(self, files: PolicyFiles, folder: Path, tokenizer: Any) -> None:
        with naming_write_faults("export", folder):
            files.write(folder, tokenizer)
        self._remove_others()

    def _remove_others(self) -> None:
        """Remove the exports that neither are among the newest nor are the best."""
        if self.keep < 0:
            return
        whole = [
            path for path in self.folder.glob("step*") if path.is_dir() and path.suffix not in (".partial", ".old")
        ]
        whole.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in whole[self.keep :]:
            if path.name != self._best.get("export"):
                shutil.rmtree(path, ignore_errors=True)

    def _wait(self) -> None:
        """Wait until nothing is being written. Raises InfrastructureFault when it failed, DeadlineExceeded when it goes
        on for too long."""
        if self._pending is None:
            return
        (folder, future), self._pending = self._pending, None
        began = time.monotonic()
        try:
            future.result(timeout=SECONDS)
        except TimeoutError as error:
            waited = time.monotonic() - began
            raise DeadlineExceeded("export", waited, f"writing {folder} in the background") from error
