"""Tau2DataModule: a batch of fresh rollouts for every training step, and the tasks to validate on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import lightning as L
from torch.utils.data import DataLoader, IterableDataset

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.batch.batch import Batch
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import TaskRef, split_name
from tau2_lightning.environment.sampler import TaskSampler
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.environment.spread import spread
from tau2_lightning.errors import ConfigError
from tau2_lightning.evaluation.evaluation import Evaluation
from tau2_lightning.evaluation.plan import ValidationPlan, sampling_of
from tau2_lightning.evaluation.resuming import check_resumed_tasks, tasks_of, training_stamp, training_tasks
from tau2_lightning.evaluation.stamp import EvaluationStamp
from tau2_lightning.evaluation.template import template_digest
from tau2_lightning.rank_zero import RankZeroRollouts
from tau2_lightning.strategy.from_rank_zero import FromRankZero, Ranks
from tau2_lightning.strategy.in_trainer import wrong_strategy
from tau2_lightning.telemetry.phases import PhaseClock


class Tau2DataModule(L.LightningDataModule):
    """Makes training batches by playing tau2 episodes against the engine, one batch at a time.

    Rank 0 owns the engine, the proxy and the episodes (``rollouts``); the other ranks receive each batch from it. Use
    it as a context manager, or call ``close``, to end the engine's processes. ``teardown`` does not end them: Lightning
    calls it after each of validate, fit and validate, and the engine must survive all three.

    Callbacks may read ``clock`` (seconds by phase), ``evaluations`` and all of ``rollouts``; apart from the clock these
    are filled on rank 0 only.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: str | Path,
        algorithm: PolicyGradient,
        *,
        run_dir: Path,
        clock: PhaseClock | None = None,
    ) -> None:
        super().__init__()
        self.config, self.clock = config, clock or PhaseClock()
        self.rollouts = RankZeroRollouts(config, Path(policy), algorithm, run_dir=run_dir, clock=self.clock)
        self._sampler: TaskSampler | None = None
        self._started = False

    # -- Lightning's hooks --------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Load the tasks, and under a Trainer start the engine and the proxy on rank 0, once, while the other ranks
        wait for it. Raises ConfigError when the Trainer's strategy is another one than `ArchonStrategy`."""
        if self._sampler is None:
            tasks = [task for view in self.config.by_domain.values() for task in training_tasks(view)]
            self._sampler = TaskSampler(tasks, seed=self.config.seed, weights=self.config.weights)
        if self._started or self.trainer is None:
            return
        if wrong := wrong_strategy(self.trainer):
            raise ConfigError([wrong])
        for logger in self.trainer.loggers:
            logger.log_hyperparams({"stamp": self._stamps()})
        device = self.trainer.strategy.root_device  # the main thread's: CUDA's current device is one per thread
        self.from_rank_zero.json(lambda: self.rollouts.start(device))
        self._started = True

    def train_dataloader(self) -> DataLoader[Batch]:
        """One item per training step: a Batch collected when it is asked for, never before the step preceding it."""
        return DataLoader(OnDemand(self._batches, self.config.train_dataset.batches_per_epoch), batch_size=None)

    def val_dataloader(self) -> DataLoader[ValidationPlan]:
        """One item: the whole validation, so that the episodes of a domain run concurrently."""
        first, *others = (self.validation_plan(domain) for domain in self.config.by_domain)
        plan = replace(first, others=tuple(others))
        return DataLoader(OnDemand(lambda: iter((plan,)), 1), batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Batches stay on the host; the strategy moves micro-batches one at a time."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the training tasks, before those that were started but not trained on."""
        return {"sampler": self.rollouts.tasks_state(self.sampler, self.trainer), "stamp": training_stamp(self.config)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue in the training tasks where the checkpoint was, unless its tasks are others and
        ``train_dataset.accept_changed_tasks`` is set: then their order starts anew. Raises ConfigError for other tasks
        without it. A run that only validates draws no training tasks, and takes any checkpoint.
        """
        if self._sampler is None:
            self.setup("fit")
        if self.config.mode != "validate" and check_resumed_tasks(self.config, state_dict.get("stamp")):
            self.sampler.load_state_dict(state_dict["sampler"])

    # -- for the module ----------------------------------------------------------------------------------------------

    def evaluate(self, plan: ValidationPlan) -> dict[str, Any]:
        """Play a validation on rank 0; returns its summary on every rank. Collective."""
        return self.from_rank_zero.json(lambda: self.rollouts.evaluate(plan))

    def end_collection(self) -> None:
        """End the episodes of batches that are not trained on; training that continues draws their tasks again."""
        self.rollouts.end_collection(self.sampler)

    @property
    def from_rank_zero(self) -> FromRankZero:
        """Sends the results of rank 0, or its failure, to every rank."""
        if self.trainer is None:
            raise RuntimeError("episodes are played inside a Trainer only: trainer.fit(module, datamodule=data)")
        return FromRankZero(cast("Ranks", self.trainer.strategy))

    # -- public -------------------------------------------------------------------------------------------------------

    @property
    def evaluations(self) -> list[Evaluation]:
        """Every validation so far, oldest first, one for each domain; only the newest keep their dialogues. Empty on
        ranks above 0."""
        return self.rollouts.evaluations

    @property
    def newest_evaluations(self) -> list[Evaluation]:
        """The domains of the newest validation; empty before the first, and on ranks above 0."""
        return [one for one in self.evaluations if one.number == self.evaluations[-1].number]

    @property
    def sampler(self) -> TaskSampler:
        """The order in which training tasks are drawn."""
        assert self._sampler is not None, "setup() has not run"
        return self._sampler

    def tasks(self, split: str) -> tuple[TaskRef, ...]:
        """The tasks of one split of the configured domain; of several, of all of them."""
        return tuple(task for view in self.config.by_domain.values() for task in tasks_of(view, split))

    def validation_plan(self, domain: str) -> ValidationPlan:
        """The validation of one of the configured domains."""
        view = self.config.by_domain[domain]
        valid, settings = view.valid_dataset, environment_settings(view.econfig)
        tasks, split = spread(tasks_of(view, valid.split), valid.limit, settings), split_name(valid.split)
        return ValidationPlan(domain, split, tasks, valid.num_trials, sampling_of(valid), valid.timeout)

    def _stamps(self) -> dict[str, Any]:
        """What the run trains and validates on, for loggers."""
        validation = {}
        for name, view in self.config.by_domain.items():
            plan = self.validation_plan(name)
            template = template_digest(self.rollouts.policy, self.config.actor.chat_template)
            settings = environment_settings(view.econfig)
            stamp = EvaluationStamp.of(settings, plan.split, plan.tasks, chat_template=template)
            validation[name] = stamp.payload()
        return {"training": training_stamp(self.config), "validation": validation}

    def _batches(self) -> Iterator[Batch]:
        for _ in range(self.config.train_dataset.batches_per_epoch):
            yield self.from_rank_zero.share(
                lambda: self.rollouts.collect(self.sampler), encode=Batch.to_bytes, decode=Batch.from_bytes
            )

    def whereabouts(self) -> list[str]:
        """Lines about the running episodes, and about what they wait for; none on ranks above 0. For any thread."""
        service = self.rollouts.service
        return service.whereabouts() if service is not None else []

    def close(self) -> None:
        """End the episodes, the proxy and the engine. Safe to call twice."""
        self._started = False
        self.rollouts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OnDemand(IterableDataset[Any]):
    """Items made one at a time when asked for.

    The length is declared because Lightning prefetches from an iterable without one: it would collect the next batch
    before the weights of this step have reached the engine.
    """

    def __init__(self, produce: Callable[[], Iterator[Any]], length: int) -> None:
        self._produce, self._length = produce, length

    def __iter__(self) -> Iterator[Any]:
        return self._produce()

    def __len__(self) -> int:
        return self._length
