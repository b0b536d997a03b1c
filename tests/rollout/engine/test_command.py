"""Command line and environment of a vLLM server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tau2_lightning.rollout.engine.command import server_command, server_environment
from tau2_lightning.rollout.engine.settings import EngineSettings


def flag(command: list[str], name: str) -> str:
    return command[command.index(f"--{name}") + 1]


def test_cpu_and_cuda_differ_in_memory_compilation_and_executor_only():
    cpu = server_command(EngineSettings(model_path="m", device="cpu", kv_cache_gib=0.25, max_model_len=8192), 1)
    cuda = server_command(EngineSettings(model_path="m", device="cuda", tensor_parallel=2, max_model_len=8192), 1)
    only_cpu = {part for part in cpu if part.startswith("--")} - set(cuda)
    only_cuda = {part for part in cuda if part.startswith("--")} - set(cpu)
    assert only_cpu == {
        "--kv-cache-memory-bytes", "--max-num-batched-tokens", "--block-size", "--distributed-executor-backend",
        "--enforce-eager",
    }  # fmt: skip
    assert only_cuda == {"--gpu-memory-utilization"}
    assert flag(cpu, "kv-cache-memory-bytes") == str(2**28)
    assert flag(cuda, "tensor-parallel-size") == "2"
    assert flag(cpu, "logprobs-mode") == "processed_logprobs"


def test_adapters_leave_the_head_alone():
    command = server_command(EngineSettings(model_path="m", lora_rank=16), 1)
    modules = command[command.index("--lora-target-modules") + 1 :]
    assert "q_proj" in modules and "lm_head" not in modules and "--enable-lora" in command
    assert command[command.index("--max-lora-rank") + 1] == "16"
    assert "--enable-lora" not in server_command(EngineSettings(model_path="m"), 1)


def test_extra_arguments_come_last_and_win():
    command = server_command(EngineSettings(model_path="m", extra_args=("--block-size", "64")), 1)
    assert command[-2:] == ["--block-size", "64"]


def test_the_environment_keeps_the_key_off_the_command_line_and_the_trainer_out(monkeypatch, tmp_path):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    settings = EngineSettings(model_path=str(tmp_path), device="cpu")
    environment = server_environment(settings, 0)
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & set(environment)
    assert environment["VLLM_API_KEY"] == settings.api_key
    assert settings.api_key not in " ".join(server_command(settings, 1)) and settings.api_key not in repr(settings)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert EngineSettings(model_path="x").api_key != settings.api_key


def test_small_models_get_one_thread_and_larger_ones_every_core(tmp_path: Path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"0" * 1000)
    settings = EngineSettings(model_path=str(tmp_path), device="cpu")
    assert server_environment(settings, 0)["OMP_NUM_THREADS"] == "1"
    with weights.open("wb") as file:
        file.truncate(100 << 20)
    assert server_environment(settings, 0)["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))


def test_a_step_on_a_cpu_is_short_unless_the_model_is_small(tmp_path: Path):
    def step(size: int, **settings: Any) -> int:
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.truncate(size)
        made = EngineSettings(model_path=str(tmp_path), device="cpu", max_model_len=8192, **settings)
        return int(flag(server_command(made, 1), "max-num-batched-tokens"))

    assert step(1000) == 8192  # the whole prompt
    assert step(270 << 20) == 512
    assert step(270 << 20, max_num_seqs=1000) == 1000  # vLLM wants at least one token for each request
    named = server_command(EngineSettings(model_path="org/model", device="cpu"), 1)
    assert flag(named, "max-num-batched-tokens") == "512"


def test_engines_on_cuda_share_out_the_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    settings = EngineSettings(model_path="m", device="cuda", tensor_parallel=2, data_parallel=2)
    assert [server_environment(settings, i)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["4,5", "6,7"]


def test_float32_engines_on_cuda_multiply_in_float32(monkeypatch):
    def precision(**settings: Any) -> str | None:
        return server_environment(EngineSettings(model_path="m", **settings), 0).get("TRITON_F32_DEFAULT")

    assert precision(device="cuda", dtype="float32") == "ieee"
    assert precision(device="cuda", dtype="bfloat16") is None
    assert precision(device="cpu", dtype="float32") is None
    monkeypatch.setenv("TRITON_F32_DEFAULT", "tf32x3")
    assert precision(device="cuda", dtype="float32") == "tf32x3"


def test_the_page_on_weight_sync_starts_an_engine_with_our_flags():
    page = (Path(__file__).parents[3] / "docs" / "weight_sync.md").read_text()
    launched = server_command(EngineSettings(model_path="m", device="cuda"), 1)
    ours = [part for part in launched if part.startswith("tau2_lightning.")]
    assert len(ours) == 5 and all(part in page for part in ours)
    assert ours == sorted(ours, key=page.index), "the order of the middleware decides which one is the outermost"
    for name in ("logprobs-mode", "generation-config", "weight-transfer-config"):
        assert f"--{name} {flag(launched, name)}" in page.replace("'", "")
    assert "--enable-scale-out" in page and "VLLM_SERVER_DEV_MODE=1" in page


def test_experts_are_returned_by_vllms_own_flag_on_cuda_and_by_our_classes_on_cpu():
    cpu, cuda, without = (
        server_command(EngineSettings(model_path="m", device=device, routed_experts=asked), 1)
        for device, asked in (("cpu", True), ("cuda", True), ("cpu", False))
    )
    module = "tau2_lightning.rollout.engine.in_vllm.routed_experts"
    assert flag(cpu, "scheduler-cls") == f"{module}.RoutedExpertsScheduler"
    assert flag(cpu, "worker-cls") == f"{module}.RoutedExpertsWorker"
    assert "--enable-return-routed-experts" in cuda and not {"--scheduler-cls", "--worker-cls"} & set(cuda)
    flags = {"--enable-return-routed-experts", "--scheduler-cls", "--worker-cls"}
    assert not flags & set(without) and "--enable-return-routed-experts" not in cpu
