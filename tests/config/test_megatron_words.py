"""The keys of AReaL's section ``megatron``: accepted without effect, or refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tau2_lightning.config.megatron_words import COMPUTED, HARMLESS, idle_keys, megatron_keys, refused_keys
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.notices import notices

# The section of AReaL's tau2 recipes for 30B and 235B, word for word.
RECIPE = yaml.safe_load("""
wrap_with_ddp: true
ddp:
  grad_reduce_in_fp32: true
  overlap_grad_reduce: false
  overlap_param_gather: false
  use_distributed_optimizer: true
use_deterministic_algorithms: true
recompute_granularity: full
recompute_method: uniform
recompute_num_layers: 1
moe_router_dtype: fp32
moe_token_dispatcher_type: alltoall
""")


def test_of_the_recipes_only_the_routers_precision_is_refused() -> None:
    (found,) = refused_keys(RECIPE)
    assert found.key == "actor.megatron.moe_router_dtype" and found.value == "fp32"
    assert "softmax in float32, as in the engine" in found.problem and found.remedy == "Leave it out, or set null"
    idle = idle_keys(RECIPE)
    assert "recompute_granularity" in idle and "ddp.overlap_grad_reduce" in idle and "wrap_with_ddp" not in idle


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"fp8_config": {"mode": "e4m3"}}, "nothing is computed in fp8"),
        ({"moe_aux_loss_coeff": 0.001}, "adds no loss that balances experts"),
        ({"ddp": {"grad_reduce_in_fp32": False}}, "gradients are summed in float32"),
        ({"exp_avg_dtype": "bfloat16"}, "optimizer states are kept in float32"),
        ({"moe_expert_capacity_factor": 1.25}, "no token is dropped"),
        ({"virtual_pipeline_parallel_size": 2}, "actor.schedule=Interleaved1F1B"),
        ({"wrap_with_ddp": 1}, "always summed"),  # not a bool
        ({"moe_new_thing": 3}, "is not known here"),
        ({"ddp": {"moe_router_dtype": None}}, "is not known here"),
    ],
)
def test_what_changes_numbers_is_refused_with_the_reason(section: dict[str, Any], says: str) -> None:
    (found,) = refused_keys(section)
    assert says in found.problem
    assert found.key.removeprefix("actor.megatron.") in dict(megatron_keys(section))


def test_what_archon_computes_is_accepted() -> None:
    for key, (allowed, _) in COMPUTED.items():
        for value in allowed:
            section = {"ddp": {key.removeprefix("ddp."): value}} if key.startswith("ddp.") else {key: value}
            assert list(refused_keys(section)) == [] and idle_keys(section) == [], key
    assert not set(COMPUTED) & set(HARMLESS)


def test_keys_of_the_command_line_need_no_plus_and_are_told() -> None:
    words = ["actor.megatron.recompute_granularity=full", "actor.megatron.ddp.bucket_size=1000"]
    config = load_config([*words, "allocation_mode=vllm:d1+megatron:d2"], check=False)
    assert config.actor.megatron == {"recompute_granularity": "full", "ddp": {"bucket_size": 1000}}
    layout, keys = notices(config)
    assert "computed by archon" in layout and "ddp.bucket_size, recompute_granularity have no effect" in keys
    assert notices(load_config([], check=False)) == []
