"""Keys that save memory are refused where they would save none, or would lose weights."""

from __future__ import annotations

import pytest

from tau2_lightning.rollout.engine.sleep_level import sleep_level
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.memory_rules import check_memory_keys

GPUS = ["cluster.n_gpus_per_node=1", "allocation_mode=vllm:d1|archon:d1"]
BF16 = ["actor.precision=bf16", "actor.dtype=bfloat16"]


def found(*words: str) -> list[str]:
    return [f"{one.key}: {one.problem}" for one in check_memory_keys(load_config([*words], check=False))]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["actor.optimizer.offload=true"], "actor.optimizer.offload: there is no GPU whose memory it would save"),
        (["actor.activation_offloading=true"], "actor.activation_offloading: there is no GPU"),
        ([*GPUS, "actor.fsdp.offload_params=true"], "offload_params: needs parameters that are cast"),
        ([*GPUS, *BF16, "actor.lora.base_dtype=bfloat16"], "no weights are frozen without adapters"),
        ([*GPUS, "actor.lora.r=8", "actor.lora.base_dtype=bfloat16"], "cannot be computed with in float32"),
        (["rollout.sleep_level=1"], "engines on a CPU have nothing to give back"),
        (
            ["cluster.n_gpus_per_node=2", "allocation_mode=vllm:d1+archon:d1", "rollout.sleep_level=2"],
            "no engine shares GPUs with the trainer",
        ),
        (
            [*GPUS, "rollout.sleep_level=2", "actor.lora.r=8"],
            "sleep_level: drops weights that publications of an adapter",
        ),
        ([*GPUS, "rollout.sleep_level=1", "rollout.max_head_offpolicyness=1"], "collects while the trainer computes"),
        ([*GPUS, "rollout.sleep_level=1", "rollout.mode=online"], "serves programs outside the run"),
        ([*GPUS, "rollout.sleep_level=1", "rollout.engine_urls=[http://x:1]"], "are not the run's own"),
    ],
)
def test_what_would_save_nothing_or_lose_weights(words, said):
    (told,) = found(*words)
    assert said in told


def test_settings_that_hold():
    assert found() == []
    lora = ["actor.lora.r=8", "actor.lora.base_dtype=bfloat16", "rollout.sleep_level=1"]
    assert found(*GPUS, *BF16, *lora, "actor.optimizer.offload=true", "actor.fsdp.offload_params=true") == []


def test_the_level_that_a_run_takes_by_itself():
    def level(*words: str) -> int:
        return sleep_level(load_config([*words], check=False))

    assert level() == 0 and level("cluster.n_gpus_per_node=2", "allocation_mode=vllm:d1+archon:d1") == 0
    assert (
        level(*GPUS) == 2 and level(*GPUS, "rollout.sleep_level=1") == 1 and level(*GPUS, "rollout.sleep_level=0") == 0
    )
    assert level(*GPUS, "actor.lora.r=8") == 1
    assert level(*GPUS, "actor.lora.r=8", "actor.lora.sync=merged") == 2
    assert level(*GPUS, "rollout.max_head_offpolicyness=2") == 0
