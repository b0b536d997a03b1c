"""The GRPO module under a real Trainer on recorded rollouts, for any layout; forked, so that imports run once.

The rollouts are real (tools/record_rollouts.py). On rank 0, transformers replaces the engine and takes the
published weights. Its log-probs of the recorded rows are the validation and the reference of the parity guard.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoModelForCausalLM

from tau2_lightning.algorithm import GRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.config.schema import OptimizerConfig
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.module import GRPOModule
from tau2_lightning.rollout.service import RolloutService
from tau2_lightning.rollout.weights.guard_rows import GuardRows
from tau2_lightning.rollout.weights.parity import ParityReport
from tau2_lightning.strategy import ArchonStrategy
from tests.fake_service import FakeService, small_config
from tests.sections import section
from tests.strategy.tiny import tiny_model

DATA = Path(__file__).parents[1] / "data"
VOCAB = 2048


@cache
def recorded(number: int) -> Batch:
    return Batch.from_bytes((DATA / f"rollouts-{number}.safetensors").read_bytes())


def save_policy(folder: Path) -> Path:
    """A policy with random weights: the batch has the log-probs of the policy that sampled the rollouts."""
    tiny_model(tied=True, vocab=VOCAB, positions=4096).save_pretrained(folder)
    return folder


class Served(FakeService):
    """Computes log-probs with transformers and the published weights."""

    def __init__(self, policy: Path) -> None:
        super().__init__()
        self.model: Any = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()

    def take(self, tensors: dict[str, Tensor]) -> None:
        missing, unexpected = self.model.load_state_dict(tensors, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}

    def check_parity(self, guard: GuardRows, expected: Sequence[Sequence[float]]) -> ParityReport:
        whole = self.logprobs(guard.rows)
        found = [[row[at - 1] for at in compared] for row, compared in zip(whole, guard.positions, strict=True)]
        apart = [abs(a - b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)]
        assert max(apart) < 1e-4, f"published and trained weights disagree by {max(apart)}"
        return ParityReport(max=max(apart), p99=max(apart), mean=sum(apart) / len(apart), tokens=len(apart))

    def logprobs(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs of every token except the first, row by row and unpadded."""
        out = []
        with torch.no_grad():
            for row in rows:
                every = torch.log_softmax(self.model(torch.tensor([row]), use_cache=False).logits[0, :-1], -1)
                out.append(every.gather(-1, torch.tensor(row[1:])[:, None])[:, 0].tolist())
        return out


class Recorded(Tau2DataModule):
    """Gives the recorded batches in turn, and continues from a checkpoint."""

    def __init__(self, policy: Path, algorithm: GRPO, folder: Path, steps: int) -> None:
        super().__init__(small_config(), policy, algorithm, run_dir=folder)
        self.steps, self.given, self.order = steps, 0, list[int]()
        self.served = Served(policy)
        rows = [recorded(0).tokens(row).tolist() for row in recorded(0).rows[:3]]
        self.rollouts.newest_guard_rows = GuardRows(rows, [list(range(1, len(row))) for row in rows])

    def setup(self, stage: str) -> None:
        if self.from_rank_zero._ranks.is_global_zero:
            self.rollouts.service = cast("RolloutService", self.served)

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(_Given(self), batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader([0], batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.given = state_dict["given"]

    def evaluate(self, plan: Any) -> dict[str, Any]:
        """Mean log-prob of the second batch's tokens under the published weights."""

        def score() -> dict[str, Any]:
            rows = self.served.logprobs([recorded(1).tokens(r).tolist() for r in recorded(1).rows])
            every = [x for row in rows for x in row]
            return {"metrics": {"logprob": sum(every) / len(every)}}

        return self.from_rank_zero.json(score)

    def end_collection(self) -> None:
        """Nothing is in progress."""


class _Given(IterableDataset[Batch]):
    def __init__(self, data: Recorded) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.data.steps):
            number = self.data.given % 2
            self.data.given += 1
            self.data.order.append(number)
            yield recorded(number)


def run(layout: str, policy: Path, folder: Path, resume: Path | None = None, epochs: int = 1) -> dict[str, Any]:
    """Validate, fit to ``epochs`` of two batches, two optimizer steps each, validate, save to ``folder``/last.ckpt."""
    spec = ParallelSpec.parse(layout)
    if spec.world > 1:  # the variables that a launcher would have set
        os.environ |= {"LOCAL_RANK": str(dist.get_rank()), "NODE_RANK": "0", "WORLD_SIZE": str(spec.world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # the process group exists already
    L.seed_everything(1 if resume is None else 2, verbose=False)  # a resumed run must not need the seed
    # With a reference and recomputed proximal log-probs, so that weights are swapped under the layout too. Under
    # random weights the sampled tokens are so unlikely that importance weights would leave nothing to compare.
    algorithm = GRPO(proximal="recompute", importance_sampling="none", kl_ctl=0.05, aggregation="sequence_mean")
    changed = {"lr": 3e-3, "eps": 1e-4, "weight_decay": 0.01, "warmup_steps": 10, "final_lr_fraction": 1.0}
    optimizer = section(OptimizerConfig, "actor.optimizer", **changed)
    module = GRPOModule(policy, algorithm, optimizer, n_minibatches=2, max_tokens_per_mb=700)
    data = Recorded(policy, algorithm, folder, steps=2)
    kept = _Keep()
    trainer = L.Trainer(
        strategy=ArchonStrategy(spec), accelerator="cpu", devices=spec.world, max_epochs=epochs, callbacks=[kept],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, inference_mode=False, use_distributed_sampler=False, default_root_dir=folder,
        check_val_every_n_epoch=100,
    )  # fmt: skip
    before = trainer.validate(module, data, ckpt_path=resume, verbose=False)
    trainer.fit(module, data, ckpt_path=resume)
    after = trainer.validate(module, data, verbose=False)
    trainer.save_checkpoint(folder / "last.ckpt")
    return {
        "before": before[0], "steps": kept.steps, "after": after[0], "order": data.order, "given": data.given,
        "version": module.weights_version,
        "global_step": trainer.global_step, "saved_random": kept.saved, "loaded_random": kept.loaded,
    }  # fmt: skip


class _Keep(L.Callback):
    """Records each step's metrics except times, and the next random numbers when a checkpoint is saved or loaded."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.saved: list[float] = []
        self.loaded: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        timed = ("time/", "perf/", "sync/")
        self.steps.append({k: v for k, v in pl_module.last_metrics.items() if not k.startswith(timed)})

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        self.saved = _coming()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        self.loaded = _coming()


def _coming() -> list[float]:
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    found: list[float] = torch.rand(3, generator=generator).tolist()
    return found
