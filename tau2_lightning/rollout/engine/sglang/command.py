"""Command line and environment of an SGLang server, which has a Python environment of its own."""

from __future__ import annotations

import os
from pathlib import Path

from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.rollout.engine import in_sglang
from tau2_lightning.rollout.engine.command import LORA_MODULES, TRAINER_VARIABLES, threads
from tau2_lightning.rollout.engine.in_vllm.auth import KEY_VARIABLE
from tau2_lightning.rollout.engine.settings import EngineSettings

from .client import SPARE_TOKENS
from .model_facts import kv_bytes_per_token

PROGRAM = Path(in_sglang.__file__).with_name("launch.py")
# Of this program's interpreter: SGLang's would find the wrong packages with them.
PYTHON_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
# An adapter stays loaded until the next one serves.
LOADED_ADAPTERS = 2


def server_command(settings: EngineSettings, port: int) -> list[str]:
    """The argument list of an SGLang server. Raises ConfigError when its cache does not hold one request."""
    flags: dict[str, object] = {
        "model-path": settings.model_path,
        "served-model-name": settings.served_name,
        "host": settings.host,
        "port": port,
        "dtype": settings.dtype,
        "context-length": settings.max_model_len + SPARE_TOKENS,
        "max-running-requests": settings.max_num_seqs,
        "tp-size": settings.tensor_parallel,
        "random-seed": settings.seed,
        "log-level-http": "warning",
        "skip-server-warmup": None,  # the watch sends the first request
        "enable-metrics": None,
    }
    flags |= _cpu_flags(settings) if settings.on_cpu else {"mem-fraction-static": settings.gpu_memory_utilization}
    if settings.lora_rank:
        flags |= {
            "enable-lora": None,
            "max-lora-rank": settings.lora_rank,
            "max-loras-per-batch": LOADED_ADAPTERS,
            "max-loaded-loras": LOADED_ADAPTERS,
        }
        flags |= {"lora-backend": "torch_native"} if settings.on_cpu else {}
    command = [settings.python, str(PROGRAM)]
    for name, value in flags.items():
        command += [f"--{name}"] if value is None else [f"--{name}", str(value)]
    if settings.lora_rank:
        command += ["--lora-target-modules", *LORA_MODULES]
    return [*command, *settings.extra_args]


def _cpu_flags(settings: EngineSettings) -> dict[str, object]:
    return {
        "device": "cpu",
        "attention-backend": "torch_native",
        "sampling-backend": "pytorch",
        "disable-overlap-schedule": None,
        "sleep-on-idle": None,  # otherwise an idle server computes on one core
        "max-total-tokens": _cache_tokens(settings),
        "mem-fraction-static": 0.3,  # without effect beside max-total-tokens, but SGLang wants to find it possible
        "cuda-graph-backend-decode": "disabled",
        "cuda-graph-backend-prefill": "disabled",
    }


def _cache_tokens(settings: EngineSettings) -> int:
    """Tokens that a CPU engine's cache of keys and values holds; SGLang alone would take nearly all memory for it."""
    needed = settings.max_model_len + SPARE_TOKENS
    size = kv_bytes_per_token(Path(settings.model_path), settings.dtype)
    if size is None:
        return needed
    tokens = int(settings.kv_cache_gib * 2**30) // size
    if tokens < needed:
        problem = f"holds {tokens} tokens of this model, and one request may have {settings.max_model_len}"
        remedy = f"Use at least {needed * size / 2**30:.2f}, or lower gconfig.max_tokens"
        raise ConfigError([Violation("rollout.kv_cache_gib", settings.kv_cache_gib, problem, remedy)])
    return tokens


def server_environment(settings: EngineSettings, index: int) -> dict[str, str]:
    """The environment of server ``index``: this process's own without the trainer's and Python's variables.

    Raises ConfigError when the server's GPUs are not visible here.
    """
    left_out = {*TRAINER_VARIABLES, *PYTHON_VARIABLES}
    environment = {k: v for k, v in os.environ.items() if k not in left_out and "TORCHELASTIC" not in k}
    environment |= {
        KEY_VARIABLE: settings.api_key,
        # The context is a few tokens longer than the model's; no request uses them.
        "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "1",
    }
    if Path(settings.model_path).is_dir():
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if settings.on_cpu:
        environment |= {
            "CUDA_VISIBLE_DEVICES": "",
            "SGLANG_USE_CPU_ENGINE": "1",
            "OMP_NUM_THREADS": str(threads(settings.model_path)),
        }
    else:
        environment |= settings.place(index).variables()
    return environment
