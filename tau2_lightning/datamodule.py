"""Tau2DataModule: online rollouts for every training batch, and the tasks to validate on."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import orjson
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.crediting import teaches
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import TaskRef, load_tasks
from tau2_lightning.environment.sampler import TaskSampler
from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.evaluation.evaluation import Evaluation
from tau2_lightning.rollout.collect.collector import Collection, CollectPlan
from tau2_lightning.rollout.service import RolloutService
from tau2_lightning.rollout.weights.parity import ParityReport
from tau2_lightning.telemetry.phases import PhaseClock
from tau2_lightning.telemetry.step_metrics import overlap_metrics, rollout_metrics

if TYPE_CHECKING:
    from tau2_lightning.strategy import ArchonStrategy


_OK, _FAILED = b"+", b"-"
# What the guard compares before there are rollouts; ids that any vocabulary has.
_GUARD_ROW = list(range(5, 69))


@dataclass(frozen=True)
class ValidationPlan:
    """One validation: which tasks, how many trials of each; sampled, or ``greedy`` with the likeliest tokens."""

    domain: str
    split: str
    tasks: tuple[TaskRef, ...]
    num_trials: int
    greedy: bool = False


class Tau2DataModule(L.LightningDataModule):
    """Makes training batches by playing tau2 episodes against the engine, one batch at a time.

    Rank 0 owns the engine, the proxy and the episodes; the other ranks receive each batch from it. Use as a context
    manager, or call ``close``, so that the engine's processes end with the work.
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
        self.config, self.policy_path, self.algorithm, self.run_dir = config, Path(policy), algorithm, run_dir
        self.clock = clock or PhaseClock()
        self.service: RolloutService | None = None
        self.shared_rollout_metrics: dict[str, float] = {}
        self.evaluations: list[Evaluation] = []
        # The engine boots from the policy that training starts from; one that ran before holds whatever it holds.
        self.version = -1 if config.rollout.engine_urls else 0
        self._sampler: TaskSampler | None = None
        self._started = False
        self._parity_rows: list[list[int]] = []
        self._batch_ended = 0.0

    # ------------------------------------------------------------------------------------------------- Lightning

    def setup(self, stage: str) -> None:
        """Start the engine and the proxy on rank 0, once, while the other ranks wait for it; load the tasks."""
        if self._sampler is None:
            tasks = self._tasks(self.config.train_dataset.split)
            self._sampler = TaskSampler(tasks, seed=self.config.seed)
        if not self._started:
            self._from_first_rank(self._start)
            self._started = True

    def train_dataloader(self) -> DataLoader[Batch]:
        """One item a training step: a Batch collected when it is asked for, never before the step preceding it."""
        return DataLoader(_Produced(self._batches, self.config.train_dataset.batches_per_epoch), batch_size=None)

    def val_dataloader(self) -> DataLoader[ValidationPlan]:
        """One item: the whole validation, so that its episodes run concurrently."""
        c = self.config
        tasks = self._tasks(c.valid_dataset.split)[: c.valid_dataset.limit]
        plan = ValidationPlan(c.econfig.domain, c.valid_dataset.split, tuple(tasks), c.valid_dataset.num_trials)
        return DataLoader(_Produced(lambda: iter((plan,)), 1), batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Batches stay on the host; micro-batches are moved one at a time by the strategy."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the tasks; what was begun and not trained on comes again when this is loaded."""
        if self.service is None:
            return {"sampler": self.sampler.state_dict()}
        return {"sampler": self.service.while_collecting(self.sampler.state_dict)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._sampler is None:
            self.setup("fit")
        self.sampler.load_state_dict(state_dict["sampler"])

    def _tasks(self, split: str) -> tuple[TaskRef, ...]:
        return load_tasks(self.config.econfig.domain, split, solo_mode=bool(self.config.econfig.solo_mode))

    # --------------------------------------------------------------------------------------------------- rollouts

    @property
    def archon(self) -> ArchonStrategy:
        """The trainer's strategy."""
        assert self.trainer is not None
        return cast("ArchonStrategy", self.trainer.strategy)

    @property
    def sampler(self) -> TaskSampler:
        """The order in which training tasks are drawn."""
        assert self._sampler is not None, "setup() has not run"
        return self._sampler

    def start(self) -> RolloutService:
        """Start engine and proxy; called by ``setup``, or earlier to let the engine boot beside other work."""
        if self.service is None:
            self.service = RolloutService(self.config, self.policy_path, run_dir=self.run_dir)
            log = self.run_dir / "logs" / "engine.log"
            console = Console(stderr=True, quiet=self.config.trainer.progress == "off")
            console.print(f"starting the engine (log: {log}) ...", highlight=False, soft_wrap=True)
            with self.clock.phase("engine start"):
                self.service.start()
        return self.service

    def _start(self) -> bytes:
        self.start()
        return b""

    def _batches(self) -> Iterator[Batch]:
        for _ in range(self.config.train_dataset.batches_per_epoch):
            yield self._batch()

    def _batch(self) -> Batch:
        """The next batch, on every rank. A run of one process passes the object on; bytes are for other ranks."""
        if self.archon.world_size == 1:
            return self.collect()
        return Batch.from_bytes(self._from_first_rank(lambda: self.collect().to_bytes()))

    def _from_first_rank(self, produce: Callable[[], bytes]) -> bytes:
        """What ``produce`` makes on rank 0, on every rank. A failure there ends all ranks instead of only one."""
        message = None
        failure: BaseException | None = None
        if self.archon.is_global_zero:
            try:
                message = _OK + produce()
            except BaseException as error:  # noqa: BLE001  # raised again below, once the others know
                failure, message = error, _FAILED + repr(error).encode()
        received = self.archon.broadcast_bytes(message)
        if failure is not None:
            raise failure
        if not received.startswith(_OK):
            raise InfrastructureFault("rank 0", "failed", received[1:].decode())
        return received[1:]

    def collect(self) -> Batch:
        """Play one batch of episodes under the engine's weights and turn them into a Batch."""
        c = self.config
        assert self.service is not None
        plan = CollectPlan(
            n_groups=c.train_dataset.batch_size,
            n_samples=c.gconfig.n_samples,
            filter_groups=c.rollout.filter_groups,
            max_refill=c.rollout.max_refill_groups,
            step=self.version,
            signal=partial(teaches, algorithm=self.algorithm),
        )
        started = time.perf_counter()
        with self.clock.phase("rollout"):
            collection = self.service.collect(self.sampler, plan)
            ended = time.perf_counter()
            step = ended - (self._batch_ended or started)
            seconds = step if c.rollout.max_head_offpolicyness else ended - started
            self._batch_ended = ended
            self.shared_rollout_metrics = rollout_metrics(collection, seconds, self.service.take_retried(), plan.signal)
            self.shared_rollout_metrics |= overlap_metrics(
                collection, waited=ended - started, step=step, engine_idle=self.service.engine_idle
            )
            self._parity_rows = self._choose_parity_rows(collection)
            return Batch.from_groups(collection.groups, self.algorithm, version=self.version)

    def end_collection(self) -> None:
        """End the episodes of batches that no training will ask for; their tasks are drawn again if it goes on."""
        if self.service is not None:
            self.sampler.put_back(self.service.end_collection())
        self._batch_ended = 0.0

    def evaluate(self, plan: ValidationPlan) -> dict[str, Any]:
        """Play a validation on rank 0; returns its summary on every rank."""
        summary: dict[str, Any] = orjson.loads(self._from_first_rank(lambda: orjson.dumps(self._evaluate(plan))))
        return summary

    def _evaluate(self, plan: ValidationPlan) -> dict[str, Any]:
        assert self.service is not None
        rollouts, excluded = self.service.evaluate(plan.tasks, plan.num_trials, greedy=plan.greedy)
        evaluation = Evaluation.of(
            plan.domain,
            plan.split,
            plan.num_trials,
            rollouts,
            excluded,
            self.config,
            weights_version=self.version,
            greedy=plan.greedy,
        )
        # Dialogues are written when a validation ends; a long run has many.
        self.evaluations[-1:] = [*(earlier.without_dialogues() for earlier in self.evaluations[-1:]), evaluation]
        return evaluation.payload()

    # ---------------------------------------------------------------------------------------------------- weights

    def publish(self, version: int, buckets: Iterator[list[tuple[str, Tensor]]]) -> None:
        """Bring weights into the engine from rank 0; the other ranks take part in gathering them."""
        self.version = version
        failure: BaseException | None = None
        if self.service is not None:
            try:
                self.service.publish(version, buckets)
            except BaseException as error:  # noqa: BLE001  # raised below, on every rank
                failure = error
        # Every rank takes part in gathering, also what rank 0 did not come to.
        if self.service is None:
            for _ in buckets:
                pass
        elif failure is not None and self.archon.world_size > 1:
            _exhaust(buckets, self.config.rollout.weight_sync.timeout)

        def outcome() -> bytes:
            if failure is not None:
                raise failure
            return b""

        self._from_first_rank(outcome)

    @property
    def takes_adapters(self) -> bool:
        """Whether the engines take a LoRA adapter by itself, rather than the weights it is merged into."""
        return self.config.actor.lora.r > 0 and self.config.actor.lora.sync == "adapter"

    def publish_adapter(self, version: int, save: Callable[[Path], None]) -> None:
        """Bring an adapter into the engine; ``save`` writes it to a folder (collective).

        It lies in the run's folder, so that engines on other nodes see it; the one before is removed afterwards.
        """
        self.version = version
        folder = self.run_dir / "adapter" / f"v{version}"
        save(folder)

        def send() -> bytes:
            assert self.service is not None
            self.service.publish_adapter(version, folder)
            for old in folder.parent.glob("v*"):
                if old != folder:
                    shutil.rmtree(old)
            return b""

        self._from_first_rank(send)

    def check_parity(self, token_logprobs: Callable[[list[list[int]]], list[list[float]]]) -> ParityReport:
        """Compare engine and trainer on a few rows of the newest rollouts (every rank takes part)."""
        rows = orjson.loads(self._from_first_rank(lambda: orjson.dumps(self._parity_rows or [_GUARD_ROW])))
        expected = token_logprobs(rows)

        def compare() -> bytes:
            assert self.service is not None
            return orjson.dumps(asdict(self.service.check_parity(rows, expected)))

        return ParityReport(**orjson.loads(self._from_first_rank(compare)))

    def _choose_parity_rows(self, collection: Collection) -> list[list[int]]:
        rows = [
            trajectory.token_ids.tolist()
            for group in collection.all_groups
            for rollout in group.rollouts
            for trajectory in rollout.trajectories
        ]
        chosen = random.Random(len(rows)).sample(rows, min(self.config.rollout.weight_sync.parity_rows, len(rows)))
        return [row[:512] for row in chosen]

    # ------------------------------------------------------------------------------------------------- life cycle

    def close(self) -> None:
        """End the episodes, the proxy and the engine. Safe to call twice."""
        service, self.service, self._started = self.service, None, False
        if service is not None:
            service.close()

    def __enter__(self) -> Tau2DataModule:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _exhaust(buckets: Iterator[Any], seconds: float) -> None:
    """Take what is left, after a failure that is to be told: no further one is raised.

    A publication that broke off may have left a thread in the middle of a bucket; it is waited for ``seconds``.
    """
    ends = time.monotonic() + seconds
    with suppress(Exception):
        while time.monotonic() < ends:
            try:
                for _ in buckets:
                    pass
            except ValueError:  # the generator is running in that thread
                time.sleep(0.05)
            else:
                return


class _Produced(IterableDataset[Any]):
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
