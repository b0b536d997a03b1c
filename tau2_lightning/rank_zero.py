"""The work of rank 0 only: run the engine, play episodes, and make batches and evaluations from them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.crediting import teaches
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import TaskRef, split_name, use_of_models
from tau2_lightning.environment.sampler import TaskSampler
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.evaluation.evaluation import Evaluation
from tau2_lightning.evaluation.macro import payload_of_all
from tau2_lightning.evaluation.plan import ValidationPlan
from tau2_lightning.evaluation.resuming import training_stamp
from tau2_lightning.evaluation.stamp import EvaluationStamp
from tau2_lightning.evaluation.template import template_digest
from tau2_lightning.rollout.collect.collector import Collection, CollectPlan
from tau2_lightning.rollout.collect.played import check_collection, check_evaluation, check_trained
from tau2_lightning.rollout.collect.validation import Part, PlayedPart
from tau2_lightning.rollout.episode.attempts import FailedAttempt
from tau2_lightning.rollout.service import RolloutService
from tau2_lightning.rollout.weights.guard_rows import GuardRows
from tau2_lightning.rollout_files.played import Played, PlayedBatch, PlayedValidation
from tau2_lightning.telemetry.phases import PhaseClock
from tau2_lightning.telemetry.router_replay import ReplayWatch
from tau2_lightning.telemetry.step_metrics import model_metrics, overlap_metrics, rollout_metrics
from tau2_lightning.trajectory import Rollout


@dataclass
class _InHand:
    """The newest batch: the version of the weights that play it, and the position in the tasks before it or, where
    other batches are played beside it, the tasks that it is the account of."""

    version: int
    drawn_before: dict[str, Any] | None = None
    tasks: tuple[TaskRef, ...] = ()


class RankZeroRollouts:
    """The rollouts of a run. Every rank has this object. `start`, `collect`, `evaluate` run on rank 0 only; the other
    methods do nothing on other ranks.

    ``service`` is None until ``start`` and on all other ranks. ``version`` is the weight version that the engine
    serves: 0 is the policy that training starts from, -1 an external engine with unknown weights. ``metrics`` describe
    the newest batch, ``newest_guard_rows`` are rows of it, ``evaluations`` are all validations so far, one for each
    domain of each; only those of the newest validation keep their dialogues. What is in ``played`` is called with
    everything that was played, also with batches that broke off.
    """

    def __init__(
        self, config: RunConfig, policy: Path, algorithm: PolicyGradient, *, run_dir: Path, clock: PhaseClock
    ) -> None:
        self.config, self.policy, self.algorithm, self.run_dir, self.clock = config, policy, algorithm, run_dir, clock
        self.service: RolloutService | None = None
        self.version = -1 if config.rollout.engine_urls else 0
        self.metrics: dict[str, float] = {}
        self.evaluations: list[Evaluation] = []
        self.played: list[Callable[[Played], None]] = []
        self.newest_guard_rows: GuardRows | None = None
        self._replay = ReplayWatch(policy)
        self._in_hand: _InHand | None = None
        self._batch_ended = 0.0
        self._models_used: dict[str, float] = {}

    def start(self, device: torch.device) -> None:
        """Start the engine and the proxy, unless they run. ``device`` is the trainer's."""
        if self.service is not None:
            return
        self.service = RolloutService(self.config, self.policy, run_dir=self.run_dir, device=device)
        log = self.run_dir / "logs" / "engine.log"
        console = Console(stderr=True, quiet=self.config.trainer.progress == "off")
        console.print(f"starting the engine (log: {log}) ...", highlight=False, soft_wrap=True)
        with self.clock.phase("engine start"):
            self.service.start()

    @property
    def running(self) -> RolloutService:
        """The started service."""
        assert self.service is not None, "start() has not run"
        return self.service

    def sleep(self) -> None:
        """Put engines that share GPUs with the trainer to sleep; publications wake them."""
        self.running.sleep()

    def collect(self, tasks: TaskSampler) -> Batch:
        """Play one batch of episodes under the engine's weights and turn them into a Batch.

        Raises NothingPlayed when faults or filters leave nothing to learn from.
        """
        plan = self._plan()
        started = time.perf_counter()
        collection, batch = Collection(()), None
        self._in_hand = _InHand(self.version)
        if not self.config.rollout.max_head_offpolicyness:
            self._in_hand = _InHand(self.version, tasks.state_dict())
        try:
            with self.clock.phase("rollout"):
                collection = self.running.collect(tasks, plan)
                self._in_hand.tasks = tuple((collection.tasks or {}).values())
                ended = time.perf_counter()
                self._measure(collection, plan, started, ended)
                check_collection(collection)
                self.newest_guard_rows = self._choose_guard_rows(collection) or self.newest_guard_rows
                batch = Batch.from_groups(collection.groups, self.algorithm, version=self.version)
                check_trained(len(collection.groups), batch.trained_tokens, batch.statistics)
        finally:
            self._tell(lambda: self._played_batch(collection, batch))
        if self.config.rollout.return_routed_experts:
            self.metrics |= self._replay.look(batch)
        return batch

    def _tell(self, played: Callable[[], Played]) -> None:
        if self.played and self.service is not None:
            one = played()
            for listener in self.played:
                listener(one)

    def _played_batch(self, collection: Collection, batch: Batch | None) -> PlayedBatch:
        return PlayedBatch(
            max(self.version, 0),
            self.version,
            collection,
            self.running.take_failed("train", collection.tasks),
            batch,
            {name: split_name(view.train_dataset.split) for name, view in self.config.by_domain.items()},
            self._training_stamps,
        )

    @cached_property
    def _training_stamps(self) -> dict[str, Any]:
        stamps: dict[str, Any] = training_stamp(self.config)["domains"]
        return stamps

    def end_collection(self, tasks: TaskSampler) -> None:
        """End the episodes of batches that will not be trained on; if training continues, ``tasks`` gives their tasks
        again."""
        if self.service is not None:
            tasks.put_back(self.service.end_collection())
            self.service.take_failed("train")  # at groups that are played anew, if at all
        self._batch_ended = 0.0

    def tasks_state(self, tasks: TaskSampler, trainer: Any) -> dict[str, Any]:
        """The position in ``tasks``; tasks that were started but not trained on count as not drawn. While the weights
        of ``trainer`` have the version of the newest batch, that is not trained: a resumed run plays it again."""
        module = getattr(trainer, "lightning_module", None)
        batch, mine = self._in_hand, tuple[TaskRef, ...]()
        if batch is not None and getattr(module, "weights_version", None) == batch.version:
            if batch.drawn_before is not None:
                return batch.drawn_before
            mine = batch.tasks
        if self.service is None:
            return tasks.state_dict(mine)
        return self.service.while_collecting(lambda others: tasks.state_dict((*mine, *others)))

    def evaluate(self, plan: ValidationPlan) -> dict[str, Any]:
        """Play a validation, all its domains at the same time; returns its summary as JSON-able data.

        Raises NothingPlayed for a domain without a finished episode, or the error that ended a domain, when the other
        domains have been played too: their evaluations are in ``evaluations``.
        """
        number = self.evaluations[-1].number + 1 if self.evaluations else 1
        before = use_of_models()
        parts = [Part(one.tasks, one.num_trials, one.sampling, one.timeout) for one in plan.parts]
        ended = [PlayedPart([], Counter())] * len(parts)
        try:
            ended = self.running.evaluate(parts)
        finally:
            stamps = [self._stamp(one, part.rollouts) for one, part in zip(plan.parts, ended, strict=True)]
            failed = cache(lambda: self.running.take_failed("validate"))
            for one, part, stamp in zip(plan.parts, ended, stamps, strict=True):
                self._tell(partial(self._played_validation, one, number, part.rollouts, stamp, failed))
        played, failures = [], []
        for one, part, stamp in zip(plan.parts, ended, stamps, strict=True):
            try:
                played.append(self._evaluation(one, number, part, stamp))
            except Exception as failure:  # noqa: BLE001 - raised below
                failures.append(failure)
        if played:
            # Dialogues are written when a validation ends; a long run has many validations.
            self.evaluations[:] = [*(earlier.without_dialogues() for earlier in self.evaluations), *played]
        if failures:
            raise failures[0]
        payload = payload_of_all(played)
        used = model_metrics(before, use_of_models())
        payload["metrics"] |= {f"eval/{name}": value for name, value in used.items()}
        return payload

    def _evaluation(self, plan: ValidationPlan, number: int, part: PlayedPart, stamp: EvaluationStamp) -> Evaluation:
        rollouts, excluded = part.result()
        config = self.config.by_domain[plan.domain]
        check_evaluation(rollouts, excluded, plan.domain)
        return Evaluation.of(
            plan.domain,
            plan.split,
            plan.num_trials,
            rollouts,
            excluded,
            config,
            tasks=[task.task_id for task in plan.tasks],
            weights_version=self.version,
            sampling=plan.sampling,
            stamp=stamp,
            number=number,
        )

    def _stamp(self, plan: ValidationPlan, rollouts: Sequence[Rollout]) -> EvaluationStamp:
        settings = environment_settings(self.config.by_domain[plan.domain].econfig)
        user = next((rollout.outcome.user for rollout in rollouts if rollout.outcome is not None), "")
        template = template_digest(self.policy, self.config.actor.chat_template)
        return EvaluationStamp.of(settings, plan.split, plan.tasks, user, template)

    def _played_validation(
        self,
        plan: ValidationPlan,
        number: int,
        rollouts: Sequence[Rollout],
        stamp: EvaluationStamp,
        failed: Callable[[], Sequence[FailedAttempt]],
    ) -> PlayedValidation:
        own = [one for one in failed() if one.domain == plan.domain]
        step = max(self.version, 0)
        return PlayedValidation(step, number, plan.domain, plan.split, rollouts, own, stamp.payload())

    def guard_rows(self) -> GuardRows:
        """The rows that the parity guard compares: of the newest rollouts, or a prompt before there are any."""
        return self.newest_guard_rows or GuardRows.prompt(self.running.opening())

    def close(self) -> None:
        """End the episodes, the proxy and the engine. Safe to call twice."""
        service, self.service = self.service, None
        if service is not None:
            service.close()

    def _plan(self) -> CollectPlan:
        c = self.config
        return CollectPlan(
            n_groups=c.train_dataset.batch_size,
            n_samples=c.gconfig.n_samples,
            filter_groups=c.rollout.filter_groups,
            max_refill=c.rollout.max_refill_groups,
            step=self.version,
            signal=partial(teaches, algorithm=self.algorithm),
        )

    def _measure(self, collection: Collection, plan: CollectPlan, started: float, ended: float) -> None:
        step = ended - (self._batch_ended or started)
        self._batch_ended = ended
        # Episodes of an asynchronous batch had the whole time since the batch before.
        seconds = step if self.config.rollout.max_head_offpolicyness else ended - started
        self.metrics = rollout_metrics(collection, seconds, self.running.take_retried(), plan.signal)
        self.metrics |= overlap_metrics(
            collection, waited=ended - started, step=step, engine_idle=self.running.engine_idle
        )
        self.metrics |= self.running.engine_load
        used, self._models_used = self._models_used, use_of_models()
        self.metrics |= model_metrics(used, self._models_used)

    def _choose_guard_rows(self, collection: Collection) -> GuardRows | None:
        rows = [row for group in collection.all_groups for rollout in group.rollouts for row in rollout.trajectories]
        return GuardRows.chosen(rows, self.config.rollout.weight_sync.parity_rows)
