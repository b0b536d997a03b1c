"""Supervised fine-tuning of a policy on dialogues: the same Trainer, strategy and micro-batches as GRPO."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tau2_lightning.batch.supervised import endless_steps, shuffled_steps, split_step
from tau2_lightning.errors import TrainingDiverged
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.policy.dialogues import EncodedDialogue
from tau2_lightning.strategy.optimizer import adamw

if TYPE_CHECKING:
    from tau2_lightning.strategy import ArchonStrategy, TokenOutputs

MicroBatches = list[MicroBatch]


def cross_entropy_loss(outputs: TokenOutputs, mb: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean negative log-likelihood (nats) of the trained labels over the whole optimizer step.

    ``metrics`` are sums over trained labels: ``nll``, ``sure`` (labels given more than half of the probability, a lower
    bound of top-1 accuracy that needs no argmax), ``entropy`` and ``tokens``.
    """
    mask = mb["loss_mask"]
    logprobs = outputs.logprobs[mask]
    loss = -logprobs.sum() / mb["n_tokens"]
    metrics = {
        "nll": -logprobs.detach().sum(),
        "sure": (logprobs.detach() > -0.6931).float().sum(),
        "entropy": outputs.entropy.detach()[mask].sum(),
        "tokens": mask.sum().float(),
    }
    return loss, metrics


def trapezoid(step: int, total: int, warmup: int, decay_from: float, floor: float = 0.02) -> float:
    """Learning-rate factor: linear from 0 over ``warmup`` steps, 1, then linear to ``floor`` from that fraction on."""
    done = step / max(1, total)
    falling = 1.0 if done <= decay_from else 1.0 - (done - decay_from) / (1.0 - decay_from)
    return min(1.0, (step + 1) / max(1, warmup)) * max(floor, falling)


class SFTModule(L.LightningModule):
    """A policy under supervised fine-tuning with AdamW, optimised by hand under an ``ArchonStrategy``.

    ``policy`` is a Hugging Face folder; a training batch is one optimizer step's list of micro-batches.
    ``kind`` and ``offload`` say how AdamW keeps its moments (`strategy.optimizer.adamw`).
    """

    def __init__(
        self,
        policy: str | Path,
        *,
        steps: int,
        learning_rate: float,
        warmup_steps: int = 20,
        decay_from: float = 0.3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
        kind: str = "adam",
        offload: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy_path = str(policy)
        self.steps, self.learning_rate, self.max_grad_norm = steps, learning_rate, max_grad_norm
        self.warmup_steps, self.decay_from = warmup_steps, decay_from
        self.betas, self.weight_decay, self.kind, self.offload = betas, weight_decay, kind, offload
        self.policy: torch.nn.Module | None = None
        self.last_metrics: dict[str, float] = {}
        self._held_out = [0.0, 0.0]  # nats and tokens of the validation so far

    @property
    def weights_version(self) -> int:
        """Number of optimizer steps so far."""
        return int(self.trainer.global_step)

    @property
    def archon(self) -> ArchonStrategy:
        """The trainer's strategy."""
        return cast("ArchonStrategy", self.trainer.strategy)

    def configure_model(self) -> None:
        """Load the policy and lay it out over the mesh, once."""
        if self.policy is None:
            self.policy = self.archon.parallelize(self.policy_path).train()

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate rises, stays and falls as ``trapezoid`` says."""
        assert self.policy is not None
        optimizer = adamw(
            self.policy.parameters(),
            kind=self.kind,
            offload=self.offload,
            lr=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: trapezoid(step, self.steps, self.warmup_steps, self.decay_from)
        )
        return [optimizer], [schedule]

    def training_step(self, batch: MicroBatches, batch_idx: int) -> None:
        """One optimizer step. Raises TrainingDiverged when the gradient is not finite."""
        optimizer, schedule = cast("Any", self.optimizers()), cast("Any", self.lr_schedulers())
        started = time.perf_counter()
        optimizer.zero_grad()
        output = self.archon.forward_backward(batch, cross_entropy_loss)
        norm = self.archon.clip_grad_norm(self.max_grad_norm)
        if not torch.isfinite(norm):
            step = self.weights_version
            problem = f"warm start, step {step}: the gradient's norm is {norm.item()}; lower warm_start.learning_rate"
            raise TrainingDiverged(problem)
        optimizer.step()
        schedule.step()
        tokens = max(1.0, float(output.metrics["tokens"]))
        self.last_metrics |= {
            "sft/loss": float(output.metrics["nll"]) / tokens,
            "sft/sure": float(output.metrics["sure"]) / tokens,
            "sft/entropy": float(output.metrics["entropy"]) / tokens,
            "sft/grad_norm": float(norm),
            "sft/lr": optimizer.param_groups[0]["lr"],
            "sft/tokens_per_second": sum(int(mb["lengths"].sum()) for mb in batch) / (time.perf_counter() - started),
        }
        self.log_dict({k: v for k, v in self.last_metrics.items() if k != "sft/valid_loss"}, batch_size=1)

    def validation_step(self, batch: MicroBatches, batch_idx: int) -> None:
        """Add some held-out dialogues to the loss on all of them."""
        metrics = self.archon.forward_backward(batch, cross_entropy_loss, train=False).metrics
        self._held_out = [self._held_out[0] + float(metrics["nll"]), self._held_out[1] + float(metrics["tokens"])]

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss (nats per token) on the held-out dialogues."""
        nats, tokens = self._held_out
        self._held_out = [0.0, 0.0]
        self.last_metrics["sft/valid_loss"] = nats / max(1.0, tokens)
        self.log("sft/valid_loss", self.last_metrics["sft/valid_loss"])


class SFTDataModule(L.LightningDataModule):
    """Encoded dialogues as ``steps`` optimizer steps of about ``tokens_per_step`` tokens, and ``held_out`` dialogues.

    A resumed training begins with the step after the checkpoint's.
    """

    def __init__(
        self,
        dialogues: Sequence[EncodedDialogue],
        held_out: Sequence[EncodedDialogue] = (),
        *,
        steps: int,
        tokens_per_step: int,
        max_tokens_per_mb: int = 8192,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dialogues, self.held_out, self.steps, self.seed = list(dialogues), list(held_out), steps, seed
        self.tokens_per_step, self.max_tokens_per_mb = tokens_per_step, max_tokens_per_mb

    def train_dataloader(self) -> DataLoader[MicroBatches]:
        """One item per optimizer step: this data-parallel rank's micro-batches."""
        return DataLoader(_Steps(self._training, self.steps), batch_size=None)

    def val_dataloader(self) -> DataLoader[MicroBatches]:
        """The held-out dialogues, once, in items of a step's size."""
        plan = shuffled_steps([len(dialogue) for dialogue in self.held_out], self.tokens_per_step, random.Random(0))
        return DataLoader(_Steps(lambda: (self._split(self.held_out, one) for one in plan), len(plan)), batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Micro-batches are moved one at a time by the strategy."""
        return batch

    def _training(self) -> Iterator[MicroBatches]:
        assert self.trainer is not None
        every = endless_steps([len(dialogue) for dialogue in self.dialogues], self.tokens_per_step, self.seed)
        for members in islice(every, self.trainer.global_step, self.steps):
            yield self._split(self.dialogues, members)

    def _split(self, dialogues: Sequence[EncodedDialogue], members: Sequence[int]) -> MicroBatches:
        assert self.trainer is not None
        strategy = cast("ArchonStrategy", self.trainer.strategy)
        replica = strategy.distributed_sampler_kwargs
        return split_step(
            [dialogues[i] for i in members],
            self.max_tokens_per_mb,
            rank=replica["rank"],
            world=replica["num_replicas"],
            packed=strategy.packs,
            shared=strategy.shares,
            trunk_weight=strategy.trunk_weight,
        )


class _Steps(IterableDataset[MicroBatches]):
    """Items made when they are asked for. Their number is declared: of an iterable without one, Lightning fetches the
    next item before the step is done."""

    def __init__(self, produce: Callable[[], Iterator[MicroBatches]], length: int) -> None:
        self._produce, self._length = produce, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[MicroBatches]:
        return self._produce()
