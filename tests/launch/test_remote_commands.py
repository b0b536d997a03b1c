"""Commands on another node: output comes back, no process outlives the connection, and the key is required."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tau2_lightning.launch import remote_client
from tau2_lightning.launch.remote_commands import CommandServer, signature, visible

KEY = "a secret of this job"


@pytest.fixture
def server() -> Iterator[CommandServer]:
    server = CommandServer("127.0.0.1", KEY)
    yield server
    server.close()


def client(server: CommandServer, command: list[str], key: str = KEY, **variables: str) -> subprocess.Popen[str]:
    request = {"name": "engine 0", "command": command, "devices": [], "forward": list(variables)}
    return subprocess.Popen(
        [sys.executable, "-I", str(Path(remote_client.__file__)), server.address, json.dumps(request)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables, remote_client.KEY_VARIABLE: key},
    )


def output_of(process: subprocess.Popen[str]) -> str:
    """All that it prints. Its standard input stays open, because closing it would end the command."""
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait(20)
    close_output(process)
    return output


def says_pid(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def close_output(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.close()


SLEEPS = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]


def gone(pid: int, within: float = 20.0) -> bool:
    ends = time.monotonic() + within
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


def test_output_and_variables(server):
    shows = [sys.executable, "-c", "import os; print(os.environ['VLLM_TEST'], os.environ.get('NOT_SENT'))"]
    process = client(server, shows, VLLM_TEST="over there")
    output = output_of(process)
    assert output == "over there None\n"


@pytest.mark.parametrize("ending", ["kill", "terminate", "stdin"])
def test_the_command_ends_with_whoever_asked_for_it(server, ending):
    process = client(server, SLEEPS)
    pid = says_pid(process)
    if ending == "stdin":
        assert process.stdin is not None
        process.stdin.close()
    else:
        process.send_signal(signal.SIGKILL if ending == "kill" else signal.SIGTERM)
    process.wait(20)
    assert gone(pid)
    close_output(process)


def test_commands_end_with_the_agent():
    server = CommandServer("127.0.0.1", KEY)
    process = client(server, SLEEPS)
    pid = says_pid(process)
    server.close()
    assert gone(pid)
    assert process.wait(20) == 1
    close_output(process)


def test_a_second_start_under_one_name_waits_for_the_end_of_the_first(server):
    first = client(server, SLEEPS)
    pid = says_pid(first)
    first.kill()
    second = client(server, [sys.executable, "-c", f"import os; print(os.path.exists('/proc/{pid}'))"])
    output = output_of(second)
    assert output == "False\n"
    first.wait(5)
    close_output(first)


def test_without_the_key_nothing_runs(server, tmp_path):
    touched = tmp_path / "touched"
    process = client(server, ["touch", str(touched)], key="another")
    assert process.wait(20) == 1
    assert not touched.exists()
    close_output(process)


def test_a_signature_holds_for_one_connection_only(server, tmp_path):
    touched = tmp_path / "touched"
    request = json.dumps({"name": "n", "command": ["touch", str(touched)], "devices": [], "environment": {}})
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        nonce = connection.makefile("r").readline().strip()
        old = signature(KEY, "0" * len(nonce), request)
        connection.sendall(f"{old}\n{request}\n".encode())
        assert connection.recv(1) == b""
    assert not touched.exists()


def test_an_agent_that_is_not_there_is_named():
    class Nowhere:
        address = "127.0.0.1:1"

    process = client(Nowhere(), ["true"])  # type: ignore[arg-type]
    output = output_of(process)
    assert process.returncode == 1
    assert "node agent at 127.0.0.1:1 does not answer" in output


def test_devices_are_names_of_what_is_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7a,6")
    assert visible([1, 2]) == ["GPU-7a", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible([1, 2]) == ["1", "2"]
