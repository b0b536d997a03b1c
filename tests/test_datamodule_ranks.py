"""One rank plays the episodes; every rank gets the same batch, its own share of it, and equally many micro-batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tau2_lightning.algorithm import GRPO
from tau2_lightning.allocation import ParallelSpec
from tau2_lightning.compose import load_config
from tau2_lightning.config import RunConfig
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.module import GRPOModule
from tests.strategy.distributed import fork
from tests.strategy.recorded_job import recorded
from tests.strategy.tiny import connected

CONFIG = ["domain=telecom", "train_dataset.batches_per_epoch=2", "logger=csv"]


def receive(layout: str, config: RunConfig, budgets: list[int]) -> dict[str, Any]:
    """What a rank ends up with when rank 0 collects one batch and fails at the next; its shares for each budget."""
    engine, spec = connected(layout), ParallelSpec.parse(layout)
    data = Tau2DataModule(config, Path("policy"), GRPO(), run_dir=Path("unused"))
    strategy: Any = SimpleNamespace(
        broadcast_bytes=engine.mesh.broadcast_bytes, packs=True, spec=spec, data_world=spec.d,
        data_rank=engine.mesh.coordinate("dp"),
    )  # fmt: skip
    data.trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]
    if engine.mesh.rank == 0:
        batches = iter([recorded(0)])
        data.service = object()  # type: ignore[assignment]
        data.collect = lambda: next(batches)  # type: ignore[method-assign]
    produced = data._batches()
    batch = next(produced)
    shares = []
    for budget in budgets:
        module = GRPOModule("policy", GRPO(), config.actor.optimizer, max_tokens_per_mb=budget)
        module.trainer = data.trainer
        shares.append(module._microbatches(batch))
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
    # What rank 0 met ends every rank.
    assert all("rank 0" in rank["failure"] for rank in ranks[1:]) and ranks[0]["failure"]
