"""Command line and environment of an SGLang server."""

from __future__ import annotations

import sys

import pytest

from tau2_lightning.errors import ConfigError
from tau2_lightning.rollout.engine.backends import server_command, server_environment
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.engine.sglang.command import PROGRAM
from tau2_lightning.rollout.engine.sglang.model_facts import kv_bytes_per_token, vocabulary_of


def settings(model, **changes) -> EngineSettings:
    base = {"backend": "sglang", "python": "/opt/sglang/bin/python", "model_path": str(model), "device": "cpu"}
    return EngineSettings(**{**base, **changes})


def flag(command: list[str], name: str) -> str:
    return command[command.index(f"--{name}") + 1]


def test_the_program_is_run_by_sglangs_interpreter(model):
    command = server_command(settings(model, extra_args=("--page-size", "16")), 1234)
    assert command[:2] == ["/opt/sglang/bin/python", str(PROGRAM)] and PROGRAM.is_file()
    assert flag(command, "port") == "1234" and flag(command, "model-path") == str(model)
    assert command[-2:] == ["--page-size", "16"]  # the user's own arguments come last and win


def test_a_full_context_fits_and_the_cache_has_the_asked_size(model):
    command = server_command(settings(model, max_model_len=1000, kv_cache_gib=0.5), 1)
    assert int(flag(command, "context-length")) > 1001  # SGLang refuses prompt + completion that fill it
    # 2 layers x 4 heads x 16 numbers x 2 bytes, of keys and of values
    assert kv_bytes_per_token(model, "auto") == 512 and kv_bytes_per_token(model, "float32") == 1024
    assert flag(command, "max-total-tokens") == str(2**29 // 512)
    with pytest.raises(ConfigError, match=r"kv_cache_gib=0\.0001: holds 209 tokens .* one request may have 1000"):
        server_command(settings(model, max_model_len=1000, kv_cache_gib=0.0001), 1)


def test_a_gpu_server_has_no_flag_of_a_cpu_server(model):
    cpu = {part for part in server_command(settings(model), 1) if part.startswith("--")}
    gpu = server_command(settings(model, device="cuda", tensor_parallel=2, gpu_memory_utilization=0.7), 1)
    only_cpu = cpu - set(gpu)
    assert {"--device", "--attention-backend", "--sampling-backend", "--max-total-tokens"} <= only_cpu
    assert flag(gpu, "mem-fraction-static") == "0.7" and flag(gpu, "tp-size") == "2"


def test_adapters_are_enabled_for_two_at_a_time(model):
    command = server_command(settings(model, lora_rank=16), 1)
    assert flag(command, "max-lora-rank") == "16" and flag(command, "max-loaded-loras") == "2"
    assert "q_proj" in command and "lm_head" not in command
    assert "--enable-lora" not in server_command(settings(model), 1)


def test_the_environment_has_the_key_and_nothing_of_this_interpreter(model, monkeypatch):
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    made = settings(model)
    environment = server_environment(made, 0)
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & set(environment)
    assert made.api_key in environment.values() and made.api_key not in " ".join(server_command(made, 1))
    assert environment["SGLANG_USE_CPU_ENGINE"] == "1"
    assert "SGLANG_USE_CPU_ENGINE" not in server_environment(settings(model, device="cuda"), 0)


@pytest.mark.parametrize(("python", "named"), [("", "no interpreter is named"), ("/no/such/python", "no program")])
async def test_without_an_interpreter_the_error_says_what_to_name(model, python, named):
    with pytest.raises(ConfigError, match=named) as error:
        await EnginePool(settings(model, python=python)).start()
    assert "rollout.engine_python" in str(error.value) and "docs/engines.md" in str(error.value)


def test_a_model_that_is_not_here_yet_has_no_known_vocabulary(tmp_path, model):
    assert (vocabulary_of(model), vocabulary_of(tmp_path)) == (100, None)
    command = server_command(settings(tmp_path, python=sys.executable, max_model_len=1000), 1)
    assert int(flag(command, "max-total-tokens")) > 1000
