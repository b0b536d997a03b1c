"""vLLM and the trainer on one GPU: weights by CUDA IPC, and the main job.

    pytest -m gpu tests/e2e/test_gpu.py

The oracle is transformers in float32 on the CPU. The tolerance follows from the error of transformers itself in
bfloat16, and a control shows that other weights differ by more.
"""

from __future__ import annotations

import asyncio
import csv
import gc
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from tau2_lightning import train
from tau2_lightning.errors import ParityError
from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.weights.parity import Tolerance, check_parity
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tau2_lightning.rollout.weights.transports import FileTransport, IpcTransport
from tests.e2e.launch_words import small_run
from tests.e2e.reference_models import VOCABULARY, ReferenceModels, engine_settings

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda", 0)
module_loop = pytest.mark.asyncio(loop_scope="module")


def rows() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for length in (40, 300, 120)]


def on_gpu(reference: ReferenceModels, name: str) -> list[tuple[str, torch.Tensor]]:
    return [(key, tensor.cuda()) for key, tensor in reference.weights(name)]


def rounded(reference: ReferenceModels, name: str) -> float:
    """Largest difference in nats between transformers' forward in bfloat16 on this GPU and in float32."""
    from transformers import Qwen3ForCausalLM

    net = Qwen3ForCausalLM.from_pretrained(reference.folders[name], dtype=torch.bfloat16).cuda().eval()
    worst = 0.0
    for row in rows():
        with torch.no_grad():
            every = torch.log_softmax(net(torch.tensor([row], device="cuda")).logits[0, :-1].float(), -1).cpu()
        found = every.gather(1, torch.tensor(row)[1:, None])[:, 0]
        worst = max(worst, float((found - torch.tensor(reference.logprobs(name, row))).abs().max()))
    return worst


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[("--enforce-eager",), ()], ids=["eager", "CUDA graphs"]
)
async def pool(
    request: pytest.FixtureRequest, reference: ReferenceModels, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EnginePool]:
    log_path = tmp_path_factory.mktemp("gpu") / "engine.log"
    settings = engine_settings(
        reference, log_path, dtype="bfloat16", gpu_memory_utilization=0.2, extra_args=request.param
    )
    async with EnginePool(settings) as pool:
        yield pool


@module_loop
async def test_weights_arrive_by_ipc(pool: EnginePool, reference: ReferenceModels) -> None:
    publisher = WeightPublisher(pool, device=GPU)
    assert isinstance(publisher._transport, IpcTransport)
    for version, name in enumerate(("B", "A", "B"), start=1):
        other = "A" if name == "B" else "B"
        allowed = 4 * rounded(reference, name)
        report = await publisher.publish(version, [on_gpu(reference, name)])
        assert report.version == version and report.bytes > 1_000_000
        expected = [reference.logprobs(name, row) for row in rows()]
        found = await check_parity(pool, rows(), expected, tolerance=Tolerance.largest(allowed))
        assert found.max > 0
        with pytest.raises(ParityError):  # the control: weights of the other policy
            await check_parity(
                pool, rows(), [reference.logprobs(other, row) for row in rows()], tolerance=Tolerance.largest(allowed)
            )
    await publisher.close()


@module_loop
async def test_ipc_and_files_bring_the_same_weights(pool: EnginePool, reference: ReferenceModels) -> None:
    found = []
    for version, backend in enumerate(("ipc", "shm"), start=10):
        await WeightPublisher(pool, device=GPU).publish(9, [on_gpu(reference, "B" if backend == "ipc" else "A")])
        publisher = WeightPublisher(pool, device=GPU, backend=backend)
        assert isinstance(publisher._transport, IpcTransport if backend == "ipc" else FileTransport)
        await publisher.publish(version, [on_gpu(reference, "A")])
        scored = await asyncio.gather(*(pool.score(row, deadline=60.0) for row in rows()))
        found.append(torch.cat([torch.tensor(list(each)) for each in scored]))
        await publisher.close()
    assert float((found[0] - found[1]).abs().max()) < 1e-3  # the engine may form other batches


@module_loop
async def test_small_buckets_leave_no_memory_behind(pool: EnginePool, reference: ReferenceModels) -> None:
    publisher = WeightPublisher(pool, device=GPU, backend="ipc", keep_snapshot=False)
    held = []
    for version in range(20, 24):
        await publisher.publish(version, [[pair] for pair in on_gpu(reference, "A")])
        gc.collect()
        torch.cuda.ipc_collect()
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
    assert held[-1] <= held[0] + 1_000_000, held
    allowed = 4 * rounded(reference, "A")
    await check_parity(
        pool, rows(), [reference.logprobs("A", row) for row in rows()], tolerance=Tolerance.largest(allowed)
    )


@module_loop
async def test_requests_go_on_over_a_change_of_weights(pool: EnginePool, reference: ReferenceModels) -> None:
    publisher = WeightPublisher(pool, device=GPU)
    await publisher.publish(30, [on_gpu(reference, "A")])
    sampling = SamplingParams(max_tokens=1500, ignore_eos=True)
    work = [
        asyncio.create_task(pool.generate(row, sampling, session=str(i), deadline=120.0))
        for i, row in enumerate(rows())
    ]
    await asyncio.sleep(0.5)
    await publisher.publish(31, [on_gpu(reference, "B")], mode="keep")
    done = await asyncio.gather(*work)
    assert all(len(each.token_ids) == 1500 for each in done)
    assert {version for each in done for version in each.versions} == {30, 31}


@pytest.mark.parametrize(("precision", "dtype", "tolerance"), [("bf16", "bfloat16", 0.25), ("fp32", "float32", 0.1)])
def test_the_main_job_trains_syncs_and_validates(
    reference: ReferenceModels, tmp_path: Path, precision: str, dtype: str, tolerance: float
) -> None:
    words = [word for word in small_run(reference, tmp_path, epochs=2) if not word.startswith("trainer.accelerator")]
    on_a_gpu = [f"actor.precision={precision}", f"actor.dtype={dtype}", "rollout.gpu_memory_utilization=0.3"]
    assert train.main([*words, *on_a_gpu, "trial_name=gpu", "trainer.validate_before=true"]) == 0
    run = tmp_path / "e2e" / "gpu"
    report = json.loads((run / "report.json").read_text())
    assert set(report["evaluations"]) == {"before", "after"}
    with (run / "metrics" / "metrics.csv").open() as file:
        found = list(csv.DictReader(file))
    steps = [row for row in found if row.get("loss/mean")]
    assert len(steps) == 2
    for row in steps:
        assert float(row["optim/grad_norm"]) > 0
        assert abs(float(row["ratio/mean"]) - 1) < 0.02
    synced = [float(row["sync/logp_difference/max"]) for row in found if row.get("sync/logp_difference/max")]
    assert len(synced) == 2 and max(synced) < tolerance
