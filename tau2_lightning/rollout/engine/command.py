"""Command line and environment of a vLLM server."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tau2_lightning.launch.ranks import JOB_VARIABLE
from tau2_lightning.launch.ranks import KEY_VARIABLE as JOB_KEY_VARIABLE
from tau2_lightning.launch.secret_words import VARIABLE as SECRET_WORDS
from tau2_lightning.rollout.engine.in_vllm.auth import KEY_VARIABLE

from .settings import EngineSettings

# Far above client.IDLE_SECONDS: the client closes idle connections, never the server.
SERVER_IDLE_SECONDS = 120
SMALL_MODEL_BYTES = 64 << 20
# Tokens of one step on a CPU, for a model that is not small. Only between two steps can the core accept requests and
# answer the watch, and each step gives every decoding request its next token.
STEP_TOKENS = 512
# vLLM would read torchrun's variables of the trainer as those of its own process group. The job's variables, its key
# among them, are for the trainer only.
TRAINER_VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *(JOB_VARIABLE, JOB_KEY_VARIABLE, SECRET_WORDS),
)
# Without the head: vLLM 0.32 on CPU crashes at the first request for prompt log-probs when an adapter wraps the head.
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def server_command(settings: EngineSettings, port: int) -> list[str]:
    """The argument list of a vLLM server. CPU and CUDA differ in memory, compilation and executor only."""
    flags: dict[str, object] = {
        "model": settings.model_path,
        "served-model-name": settings.served_name,
        "host": settings.host,
        "port": port,
        "dtype": settings.dtype,
        "max-model-len": settings.max_model_len,
        "max-num-seqs": settings.max_num_seqs,
        "tensor-parallel-size": settings.tensor_parallel,
        "seed": settings.seed,
        "logprobs-mode": "processed_logprobs",  # of the distribution after temperature
        "worker-extension-cls": "tau2_lightning.rollout.engine.in_vllm.transfer.WorkerExtension",
        "weight-transfer-config": json.dumps({"backend": "shm" if settings.on_cpu else "cuda"}),
        # The last middleware is the outermost.
        "middleware": (
            "tau2_lightning.rollout.engine.in_vllm.cpu_seconds.CpuSeconds",
            "tau2_lightning.rollout.engine.in_vllm.generate.FastGenerate",
            "tau2_lightning.rollout.engine.in_vllm.weight_routes.TakeWeights",
            "tau2_lightning.rollout.engine.in_vllm.auth.RequireKey",
        ),
        "generation-config": "vllm",  # the request alone decides how to sample
        "enable-scale-out": None,
        "enable-prompt-tokens-details": None,
        "disable-uvicorn-access-log": None,
    }
    flags |= _cpu_flags(settings) if settings.on_cpu else {"gpu-memory-utilization": settings.gpu_memory_utilization}
    if settings.sleep_level and not settings.on_cpu:
        flags["enable-sleep-mode"] = None
    if settings.lora_rank:
        flags |= {"enable-lora": None, "max-lora-rank": settings.lora_rank}
    if settings.routed_experts:
        flags |= _routed_experts_flags(settings)
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"]
    for name, value in flags.items():
        for one in value if isinstance(value, tuple) else (value,):
            command += [f"--{name}"] if one is None else [f"--{name}", str(one)]
    if settings.lora_rank:
        command += ["--lora-target-modules", *LORA_MODULES]
    return [*command, *settings.extra_args]


def _routed_experts_flags(settings: EngineSettings) -> dict[str, object]:
    if not settings.on_cpu:
        return {"enable-return-routed-experts": None}
    # With vLLM's own flag, a CPU engine refuses to start, because there is no Triton.
    module = "tau2_lightning.rollout.engine.in_vllm.routed_experts"
    return {"scheduler-cls": f"{module}.RoutedExpertsScheduler", "worker-cls": f"{module}.RoutedExpertsWorker"}


def _cpu_flags(settings: EngineSettings) -> dict[str, object]:
    # A small model prefills a prompt that fits in one step.
    step = max(2048, settings.max_model_len) if _is_small(settings.model_path) else STEP_TOKENS
    flags: dict[str, object] = {
        "kv-cache-memory-bytes": int(settings.kv_cache_gib * 2**30),
        "max-num-batched-tokens": max(step, settings.max_num_seqs),  # vLLM refuses fewer
        # The prefix cache holds whole blocks only. vLLM's block of 128 on CPU recomputes 64 tokens per turn on average.
        "block-size": 32,
        "enforce-eager": None,  # compiling takes a minute on CPU, and generates no faster
    }
    return flags | ({"distributed-executor-backend": "uni"} if settings.tensor_parallel == 1 else {})


def server_environment(settings: EngineSettings, index: int) -> dict[str, str]:
    """The environment of server ``index``: this process's own, without the trainer's variables, with vLLM's switches.

    Raises ConfigError when the server's GPUs are not visible here.
    """
    environment = {k: v for k, v in os.environ.items() if k not in TRAINER_VARIABLES and "TORCHELASTIC" not in k}
    environment |= {
        KEY_VARIABLE: settings.api_key,
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(SERVER_IDLE_SECONDS),
        "VLLM_SERVER_DEV_MODE": "1",  # enables the pause, weight and cache routes; RequireKey guards them
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if Path(settings.model_path).is_dir():
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if settings.lora_rank:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    if settings.on_cpu:
        environment |= _cpu_variables(settings)
    else:
        environment |= settings.place(index).variables()
        if settings.dtype == "float32":
            # vLLM's attention multiplies with Triton's default precision, which is TF32: log-probs then differ from
            # the trainer's in the second decimal.
            environment.setdefault("TRITON_F32_DEFAULT", "ieee")
    return environment


def _cpu_variables(settings: EngineSettings) -> dict[str, str]:
    variables = {
        # A vLLM built for CUDA would take any GPU it sees, also in a run on CPU.
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads(settings.model_path)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Otherwise the first request with log-probs compiles one small function with inductor, which takes 20 s.
        "TORCHDYNAMO_DISABLE": "1",
    }
    if settings.tensor_parallel == 1:
        # Without this, vLLM on CPU starts a third process (executor "mp"); its engine core is a process of its own
        # in any case.
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return variables


def threads(model_path: str) -> int:
    """One thread for a small model, which more threads only slow down; else one for each core of this process."""
    return 1 if _is_small(model_path) else len(os.sched_getaffinity(0))


def _is_small(model_path: str) -> bool:
    """Whether the weights are a folder of less than ``SMALL_MODEL_BYTES``; a model of the hub counts as large."""
    files = list(Path(model_path).glob("*.safetensors"))
    return bool(files) and sum(file.stat().st_size for file in files) < SMALL_MODEL_BYTES
