"""Which engine a run starts, and what is refused with SGLang before anything heavy starts."""

from __future__ import annotations

import importlib.util
import os.path
import sys
from pathlib import Path

import pytest

from tau2_lightning.errors import Violation
from tau2_lightning.launch.cluster import placement_of
from tau2_lightning.rollout.engine.sleep_level import can_sleep
from tau2_lightning.rollout.engines import engine_settings
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.engine_rules import check_engines, missing_imports
from tests.strategy.families.models import CONFIGS

SGLANG = "allocation_mode=sglang:d1+archon:d1"


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter that says it has SGLang."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 0.5.23\n")
    program.chmod(0o755)
    return f"rollout.engine_python={program}"


def found(*words: str) -> list[Violation]:
    return check_engines(load_config(words, check=False))


def test_sglang_without_its_interpreter_is_refused_and_both_ways_out_are_named():
    (problem,) = found(SGLANG)
    assert problem.key == "rollout.engine_python"
    assert "docs/engines.md" in problem.remedy and "vllm:" in problem.remedy


def test_sglang_with_its_interpreter_is_what_starts(python, tmp_path):
    assert not found(SGLANG, python)
    settings = engine_settings(load_config([SGLANG, python], check=False), tmp_path, tmp_path / "log")
    assert settings.backend == "sglang" and settings.python == python.partition("=")[2]
    vllm = engine_settings(load_config(["allocation_mode=vllm:d1+archon:d1"], check=False), tmp_path, tmp_path / "log")
    assert vllm.backend == "vllm"


def test_running_servers_need_no_interpreter():
    assert not found(SGLANG, "rollout.engine_urls=[http://127.0.0.1:1]")


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("rollout.engine_python=/no/such/python", "is no program on this machine"),
        (f"rollout.engine_python={sys.executable}", "has no package sglang"),
        (f"rollout.engine_python={os.path.dirname(sys.executable)}", "is no program"),
    ],
)
def test_an_interpreter_that_cannot_start_sglang_is_refused(word, named):
    (problem,) = found(SGLANG, word)
    assert problem.key == "rollout.engine_python" and named in problem.problem


def test_on_a_cluster_the_other_machine_knows_its_programs():
    words = ["scheduler.type=slurm", "cluster.n_nodes=1", "cluster.n_gpus_per_node=2"]
    assert not found(SGLANG, *words, "rollout.engine_python=/cluster/sglang/bin/python")
    assert [problem.key for problem in found(SGLANG, *words)] == ["rollout.engine_python"]


def test_an_interpreter_without_sglang_in_the_allocation_would_do_nothing(python):
    (problem,) = found("allocation_mode=vllm:d1+archon:d1", python)
    assert "no server" in problem.problem


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["rollout.seeded_sampling=true"], "rollout.seeded_sampling"),
        (["rollout.return_routed_experts=true"], "rollout.return_routed_experts"),
        (["rollout.weight_sync.mode=delta", "actor.dtype=bfloat16"], "rollout.weight_sync.mode"),
        (["rollout.weight_sync.backend=nccl"], "rollout.weight_sync.backend"),
        (["rollout.weight_sync.backend=ipc"], "rollout.weight_sync.backend"),
        (["rollout.weight_sync.backend=gloo", "rollout.engine_urls=[http://a:1]"], "rollout.weight_sync.backend"),
        (["rollout.weight_sync.backend=http", "allocation_mode=sglang:t2+archon:d1"], "rollout.weight_sync.backend"),
        (["actor.lora.r=8", "actor.lora.sync=adapter", "rollout.max_head_offpolicyness=2"], "actor.lora.sync"),
    ],
)
def test_what_sglang_does_not_do_here_is_refused(words, key, python):
    given = [SGLANG, *words] if any("engine_urls" in word for word in words) else [SGLANG, python, *words]
    assert [problem.key for problem in found(*given)] == [key]
    as_vllm = [word.replace("sglang:", "vllm:") for word in given if word != python]
    assert key not in [problem.key for problem in found(*as_vllm)] or "gloo" in str(words)


def test_gloo_is_for_sglang(python):
    (problem,) = found("allocation_mode=vllm:d1+archon:d1", "rollout.weight_sync.backend=gloo")
    assert problem.key == "rollout.weight_sync.backend"
    assert not found(SGLANG, python, "rollout.weight_sync.backend=gloo", "trainer.accelerator=cpu")


def test_engines_of_sglang_stay_awake(python):
    words = ["allocation_mode=sglang:d1|archon:d1", python, "cluster.n_gpus_per_node=1"]
    assert "SGLang" in str(can_sleep(load_config(words, check=False)))


def test_the_users_engine_is_its_components_or_the_policys():
    def user_engine(mode: str) -> str:
        config = load_config([f"allocation_mode={mode}", "trainer.accelerator=cpu"], check=False)
        return placement_of(config).user_engine

    assert user_engine("sglang:d1+archon:d1") == "sglang"
    assert user_engine("sglang:d1+vllm[user]:d1+archon:d1") == "vllm"
    assert user_engine("vllm:d1+sglang[user]:d1+archon:d1") == "sglang"


def test_packages_that_vllm_needs_for_a_model_are_asked_for_where_vllm_starts(python, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model = CONFIGS["Qwen3.5"](8)

    def missing(*words: str) -> list[Violation]:
        return list(missing_imports(load_config(["actor.path=mine", *words], check=False), model))

    (problem,) = missing()
    assert problem.key == "actor.path" and "torchvision for 'qwen3_5_text' models" in problem.problem
    assert not missing("rollout.engine_urls=[http://127.0.0.1:1]") and not missing(SGLANG, python)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert not missing()
