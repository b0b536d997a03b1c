"""The engine's child process: command line, environment, and that nothing of it survives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tau2_lightning.errors import ConfigError, DeadlineExceeded
from tau2_lightning.launch import watchdog as engine_watchdog
from tau2_lightning.rollout.engine import client as engine_client
from tau2_lightning.rollout.engine import server as engine_server
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.server import EngineServer, EngineSettings, server_command, server_environment

# Like vLLM: a main process with a child of its own that ignores SIGTERM and does not notice its parent's death.
SERVER = """
import os, signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
worker = subprocess.Popen([sys.executable, "-c", child])
{then}
"""
WAIT = SERVER.format(then="time.sleep(600)")
STUBBORN = SERVER.format(
    then="signal.signal(signal.SIGTERM, signal.SIG_IGN); print('stubborn', flush=True); time.sleep(600)"
)
LEAVE = SERVER.format(then="time.sleep(1); sys.exit(7)")

PARENT = """
import subprocess, sys, time
p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
print(p.pid, flush=True)
time.sleep(600)
"""


def watchdog(program: str, grace: float = 1.0) -> list[str]:
    return [sys.executable, "-I", engine_watchdog.__file__, str(grace), sys.executable, "-c", program]


def members(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def until(condition, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_kill_9_of_the_parent_ends_the_whole_group():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *watchdog(WAIT)], stdout=subprocess.PIPE, text=True)
    group = int(parent.stdout.readline())
    assert until(lambda: len(members(group)) == 3)
    parent.kill()
    parent.wait()
    assert until(lambda: not members(group))


def test_the_main_process_does_not_leave_its_children_behind():
    process = subprocess.Popen(
        watchdog(LEAVE), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    assert process.wait(10) == 7
    assert not members(process.pid)


def test_kill_9_of_the_main_process_ends_its_children():
    process = subprocess.Popen(watchdog(WAIT), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    assert until(lambda: len(members(process.pid)) == 3)
    main = next(p for p in members(process.pid) if p.ppid() == process.pid)
    main.kill()
    assert process.wait(10) == 128 + signal.SIGKILL
    assert not members(process.pid)


@pytest.mark.parametrize("program", [WAIT, STUBBORN])
async def test_stop_ends_everything_even_the_stubborn(program, monkeypatch, tmp_path):
    monkeypatch.setattr("tau2_lightning.rollout.engine.server.STOP_SECONDS", 1.0)
    monkeypatch.setattr(
        "tau2_lightning.rollout.engine.server.server_command", lambda settings, port: [sys.executable, "-c", program]
    )
    server = EngineServer(EngineSettings(model_path="x", log_path=tmp_path / "engine.log"))
    server.start()
    word = "stubborn" if program == STUBBORN else "up"
    assert until(lambda: word in server.log_tail() and len(members(server.pid)) == 3)
    await asyncio.wait_for(server.stop(), 30)
    assert not members(server.pid) and not server.alive
    await server.stop()  # twice is fine


def serving(monkeypatch, program: str, *arguments: str) -> None:
    """Let engine servers run ``program`` with its port and ``arguments``."""
    monkeypatch.setattr(
        engine_server, "server_command", lambda settings, port: [sys.executable, "-c", program, str(port), *arguments]
    )


def listener(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


async def test_a_port_that_is_still_taken_at_a_restart_is_replaced(monkeypatch, tmp_path):
    serving(monkeypatch, "import time; time.sleep(600)")
    server = EngineServer(EngineSettings(model_path="x", log_path=tmp_path / "engine.log"))
    server.start()
    first, group = server.port, server.pid
    with listener(first):  # what lingers of the dead server, or any other program
        await server.restart()
        assert server.port != first and server.alive and not members(group)
        assert server.url.endswith(str(server.port))
    await server.stop()


async def test_a_configured_port_is_waited_for_at_a_restart(monkeypatch, tmp_path):
    serving(monkeypatch, "import time; time.sleep(600)")
    with listener() as free:
        port = free.getsockname()[1]
    server = EngineServer(EngineSettings(model_path="x", port=port, log_path=tmp_path / "engine.log"))
    server.start()
    lingering = listener(port)
    asyncio.get_running_loop().call_later(0.3, lingering.close)
    await server.restart()
    assert server.port == port and lingering.fileno() == -1
    monkeypatch.setattr(engine_server, "PORT_SECONDS", 0.1)
    with listener(port), pytest.raises(ConfigError, match=rf"engine_port={port}.*cannot listen"):
        await server.restart()
    assert not server.alive and not members(server.pid)


async def test_an_end_that_does_not_come_names_who_is_left(monkeypatch, tmp_path):
    serving(monkeypatch, "import time; time.sleep(600)")
    server = EngineServer(EngineSettings(model_path="x", log_path=tmp_path / "engine.log"))
    server.start()
    with pytest.raises(DeadlineExceeded, match=rf"ending engine 0: processes \[.*{server.pid}"):
        await server.gone(within=0.1)  # nobody killed it
    await server.stop()


# The first start finds its port taken, the second serves.
UNLUCKY = """
import http.server, pathlib, sys
if not pathlib.Path(sys.argv[2]).exists():
    pathlib.Path(sys.argv[2]).touch()
    sys.exit("OSError: [Errno 98] Address already in use")
class Models(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if "the-key" in self.headers["Authorization"] else 401)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Models).serve_forever()
"""


async def test_a_port_lost_while_starting_is_replaced(monkeypatch, tmp_path):
    serving(monkeypatch, UNLUCKY, str(tmp_path / "tried"))
    server = EngineServer(EngineSettings(model_path="x", api_key="the-key", log_path=tmp_path / "engine.log"))
    server.start()
    first = server.port
    await asyncio.wait_for(server.wait_ready(), 30)
    assert server.alive and server.port != first
    await server.stop()


async def test_every_port_is_checked_before_anything_starts(monkeypatch):
    monkeypatch.setattr(EngineServer, "start", lambda self: pytest.fail("launched"))
    with listener() as free:
        port = free.getsockname()[1]
    pool = EnginePool(EngineSettings(model_path="x", port=port, data_parallel=2))
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # then somebody else has it: as good
            stack.enter_context(listener(port + 1))
        with pytest.raises(ConfigError, match=rf"engine_port={port + 1}.*cannot listen"):
            await pool.start()
    assert not pool.members


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
    assert (
        server_environment(EngineSettings(model_path=str(tmp_path), device="cpu", threads=3), 0)["OMP_NUM_THREADS"]
        == "3"
    )


def test_engines_on_cuda_share_out_the_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    settings = EngineSettings(model_path="m", device="cuda", tensor_parallel=2, data_parallel=2)
    assert [server_environment(settings, i)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["4,5", "6,7"]


def test_float32_engines_on_cuda_multiply_in_float32(monkeypatch):
    def precision(**settings: str) -> str | None:
        return server_environment(EngineSettings(model_path="m", **settings), 0).get("TRITON_F32_DEFAULT")

    assert precision(device="cuda", dtype="float32") == "ieee"
    assert precision(device="cuda", dtype="bfloat16") is None
    assert precision(device="cpu", dtype="float32") is None
    monkeypatch.setenv("TRITON_F32_DEFAULT", "tf32x3")
    assert precision(device="cuda", dtype="float32") == "tf32x3"


async def test_the_client_closes_idle_connections_long_before_the_server():
    """Else a request meets a connection that is just being closed, and a healthy engine is taken for a dead one."""
    environment = server_environment(EngineSettings(model_path="m"), 0)
    client = engine_client.EngineClient("http://127.0.0.1:1")
    kept = client._session().connector._keepalive_timeout
    await client.close()
    assert kept == engine_client.IDLE_SECONDS
    assert kept + 1 < 5, "servers that somebody else started close after five seconds"
    assert 10 * kept < float(environment["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"])
