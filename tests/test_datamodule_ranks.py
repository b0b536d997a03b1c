"""One rank plays the episodes; every rank gets the same batch, its own share of it, and equally many micro-batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tau2_lightning.algorithm import GRPO
from tau2_lightning.batch import codec
from tau2_lightning.batch.batch import Batch
from tau2_lightning.callbacks.weight_sync import publish_weights
from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault
from tau2_lightning.module import GRPOModule
from tau2_lightning.rollout.weights.sync_round import SyncReport
from tau2_lightning.run.compose import load_config
from tests.batch.groups import random_groups
from tests.strategy.distributed import fork
from tests.strategy.recorded_job import recorded
from tests.strategy.tiny import connected

CONFIG = ["domain=telecom", "train_dataset.batches_per_epoch=2", "logger=csv"]


def receive(layout: str, config: RunConfig, budgets: list[int]) -> dict[str, Any]:
    """What a rank gets when rank 0 collects one batch and fails at the next, and its shares for each budget."""
    engine, spec = connected(layout), ParallelSpec.parse(layout)
    data = Tau2DataModule(config, Path("policy"), GRPO(), run_dir=Path("unused"))
    strategy: Any = SimpleNamespace(
        broadcast_bytes=engine.mesh.broadcast_bytes, packs=True, shares=True, trunk_weight=0.06, spec=spec,
        data_world=spec.d, data_rank=engine.mesh.coordinate("dp"),
        is_global_zero=engine.mesh.rank == 0, world_size=spec.world,
    )  # fmt: skip
    data.trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]
    if engine.mesh.rank == 0:
        batches = iter([recorded(0)])
        data.rollouts.collect = lambda tasks: next(batches)  # type: ignore[method-assign]
    data._sampler = object()  # type: ignore[assignment]
    produced = data._batches()
    batch = next(produced)
    shares = []
    for budget in budgets:
        module = GRPOModule("policy", GRPO(), config.actor.optimizer, max_tokens_per_mb=budget)
        module.trainer = data.trainer
        shares.append(module.forward_pass.local_microbatches(batch))
    try:
        next(produced)
        failure = ""
    except (InfrastructureFault, RuntimeError, StopIteration) as error:
        failure = f"{type(error).__name__}: {error}"
    return {
        "data_rank": strategy.data_rank,
        "tokens": [batch.tokens(row).tolist() for row in batch.rows],
        "rows": [sorted(int(row) for mb in share for row in mb["row_ids"] if row >= 0) for share in shares],
        "microbatches": [len(share) for share in shares],
        "counts": {(float(mb["n_tokens"]), float(mb["n_rows"])) for share in shares for mb in share},
        "failure": failure,
    }


def test_ranks_share_a_batch_and_agree_on_its_microbatches() -> None:
    ranks = fork(4, receive, "d2p2", load_config(CONFIG), [400, 100_000])
    batch = recorded(0)
    assert all(rank["tokens"] == [batch.tokens(row).tolist() for row in batch.rows] for rank in ranks)
    assert all(rank["counts"] == {(float(batch.n_tokens), float(batch.n_rows))} for rank in ranks)
    assert all(rank["microbatches"] == ranks[0]["microbatches"] for rank in ranks)
    many, few = ranks[0]["microbatches"]
    assert many > few == 2 and many % 2 == 0  # a multiple of the pipeline's ranks
    by_data_rank = {rank["data_rank"]: rank["rows"] for rank in ranks}
    assert all(rank["rows"] == by_data_rank[rank["data_rank"]] for rank in ranks)  # both stages of a data rank
    for mine, other in zip(by_data_rank[0], by_data_rank[1], strict=True):
        assert sorted(mine + other) == sorted(row.row_id for row in batch.rows)
    # The failure of rank 0 ends every rank.
    assert all("rank 0" in rank["failure"] for rank in ranks[1:]) and ranks[0]["failure"]


def test_one_process_gets_the_collected_batch_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("one process serialised a batch to itself")

    for name in ("encode", "decode"):
        monkeypatch.setattr(codec, name, refuse)
    data = Tau2DataModule(load_config(CONFIG), Path("policy"), GRPO(), run_dir=Path("unused"))
    strategy: Any = SimpleNamespace(broadcast_bytes=refuse, is_global_zero=True, world_size=1)
    data.trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]
    collected = Batch.from_groups(random_groups(1, 2, 3), GRPO(), version=0)
    data.rollouts.collect = lambda tasks: collected  # type: ignore[method-assign]
    data._sampler = object()  # type: ignore[assignment]
    assert [batch is collected for batch in data._batches()] == [True, True]


def start(config: RunConfig) -> str:
    """What a rank raises when the engine does not start on rank 0."""
    engine = connected("d2")
    data = Tau2DataModule(config, Path("policy"), GRPO(), run_dir=Path("unused"))
    zero = engine.mesh.rank == 0
    strategy: Any = SimpleNamespace(
        broadcast_bytes=engine.mesh.broadcast_bytes, is_global_zero=zero, world_size=2, root_device=torch.device("cpu")
    )
    data.trainer = SimpleNamespace(strategy=strategy, loggers=[])  # type: ignore[assignment]

    def fail(device: torch.device) -> None:
        assert zero, "only rank 0 has an engine"
        raise InfrastructureFault("engine", "crash", "out of memory")

    data.rollouts.start = fail  # type: ignore[method-assign]
    try:
        data.setup("fit")
    except InfrastructureFault as error:
        return str(error)
    return ""


def test_an_engine_that_does_not_start_ends_every_rank() -> None:
    first, second = fork(2, start, load_config(CONFIG))
    assert first == "engine: crash: out of memory"
    assert second.startswith("rank 0: failed") and "out of memory" in second


def test_a_publication_that_broke_off_in_a_bucket_is_what_is_told() -> None:
    """Its thread is still gathering at the error; rank 0 gathers the remaining buckets, then raises that error."""
    taken: list[int] = []
    inside = threading.Event()

    def buckets() -> Iterator[Any]:
        for number in range(3):
            inside.set()
            time.sleep(0.3)
            taken.append(number)
            yield []

    def publish(version: int, tensors: Iterator[Any]) -> None:
        threading.Thread(target=next, args=(tensors, None), daemon=True).start()
        assert inside.wait(20)
        raise DeadlineExceeded("weight sync", 1.0, f"publishing version {version}")

    data = Tau2DataModule(load_config(CONFIG), Path("policy"), GRPO(), run_dir=Path("unused"))
    strategy: Any = SimpleNamespace(broadcast_bytes=lambda message: message, is_global_zero=True, world_size=2)
    trainer: Any = SimpleNamespace(strategy=strategy, datamodule=data)
    data.trainer = trainer
    data.rollouts.service = SimpleNamespace(publish=publish)  # type: ignore[assignment]
    with pytest.raises(DeadlineExceeded, match="publishing version 7"):
        publish_weights(trainer, 7, buckets())
    assert sorted(taken) == [0, 1, 2]
    assert data.rollouts.version == 7


def publish_somewhere(config: RunConfig, fails: bool) -> dict[str, Any]:
    """What a rank gets of a publication, and how many of three buckets it took part in."""
    engine = connected("d2")
    zero, taken = engine.mesh.rank == 0, []

    def buckets() -> Iterator[Any]:
        for number in range(3):
            taken.append(number)
            yield [(str(number), None)] if zero else []

    def publish(version: int, tensors: Iterator[Any]) -> SyncReport:
        if fails:
            next(tensors)
            raise InfrastructureFault("engine", "weight sync", "half of it arrived")
        return SyncReport(version, 0, {"gather": float(len(list(tensors)))})

    data = Tau2DataModule(config, Path("policy"), GRPO(), run_dir=Path("unused"))
    strategy: Any = SimpleNamespace(broadcast_bytes=engine.mesh.broadcast_bytes, is_global_zero=zero, world_size=2)
    data.trainer = trainer = SimpleNamespace(strategy=strategy, datamodule=data)  # type: ignore[assignment]
    if zero:
        data.rollouts.service = SimpleNamespace(publish=publish)  # type: ignore[assignment]
    try:
        found: Any = publish_weights(trainer, 1, buckets())  # type: ignore[arg-type]
    except InfrastructureFault as error:
        found = str(error)
    return {"found": found, "taken": taken}


def test_every_rank_takes_part_in_a_publication_and_hears_its_end() -> None:
    for rank in fork(2, publish_somewhere, load_config(CONFIG), False):
        assert rank["found"]["time/sync/gather"] == 3.0 and rank["taken"] == [0, 1, 2]
    first, second = fork(2, publish_somewhere, load_config(CONFIG), True)
    assert first["found"] == "engine: weight sync: half of it arrived"
    assert second["found"].startswith("rank 0: failed") and "half of it arrived" in second["found"]
    assert first["taken"] == second["taken"] == [0, 1, 2]
