"""The engine's child process: its start, its ports, and the end of all its processes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

import psutil
import pytest

from tau2_lightning.errors import ConfigError, DeadlineExceeded, InfrastructureFault
from tau2_lightning.rollout.engine import connection
from tau2_lightning.rollout.engine import server as engine_server
from tau2_lightning.rollout.engine.command import server_environment
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.server import EngineServer
from tau2_lightning.rollout.engine.settings import EngineSettings
from tests.launch.processes import SERVER, WAIT, members, until

STUBBORN = SERVER.format(
    then="signal.signal(signal.SIGTERM, signal.SIG_IGN); print('stubborn', flush=True); time.sleep(600)"
)


@pytest.mark.parametrize("program", [WAIT, STUBBORN])
async def test_stop_ends_everything_even_the_stubborn(program, monkeypatch, tmp_path):
    monkeypatch.setattr("tau2_lightning.rollout.engine.server.STOP_SECONDS", 1.0)
    monkeypatch.setattr(
        "tau2_lightning.rollout.engine.server.server_command", lambda settings, port: [sys.executable, "-c", program]
    )
    server = EngineServer(EngineSettings(model_path="x", log_path=tmp_path / "engine.log"))
    server.start()
    word = "stubborn" if program == STUBBORN else "up"
    assert until(lambda: word in server.log_tail() and len(group_of(server)) == 3)
    await asyncio.wait_for(server.stop(), 30)
    assert not group_of(server) and not server.alive
    await server.stop()  # a second call does nothing


def serving(monkeypatch, program: str, *arguments: str) -> None:
    """Let engine servers run ``program`` with its port and ``arguments``."""
    monkeypatch.setattr(
        engine_server, "server_command", lambda settings, port: [sys.executable, "-c", program, str(port), *arguments]
    )


def group_of(server: EngineServer) -> list[psutil.Process]:
    """The running processes of the server's process group."""
    assert server.pid is not None
    return members(server.pid)


def listener(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


@pytest.mark.parametrize("replay", [True, False])
async def test_an_engine_that_dies_with_router_replay_names_the_way_without(replay, monkeypatch, tmp_path):
    serving(monkeypatch, "raise SystemExit('no routed experts here')")
    settings = EngineSettings(model_path="x", log_path=tmp_path / "engine.log", routed_experts=replay)
    server = EngineServer(settings)
    server.start()
    with pytest.raises(InfrastructureFault, match="no routed experts here") as error:
        await server.wait_ready()
    assert ("rollout.return_routed_experts=false" in str(error.value)) is replay
    await server.stop()


async def test_a_port_that_is_still_taken_at_a_restart_is_replaced(monkeypatch, tmp_path):
    serving(monkeypatch, "import time; time.sleep(600)")
    server = EngineServer(EngineSettings(model_path="x", log_path=tmp_path / "engine.log"))
    server.start()
    first, group = server.port, server.pid
    assert group is not None
    with listener(first):  # a socket of the dead server or of another program
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
    assert not server.alive and not group_of(server)


async def test_an_end_that_does_not_come_names_who_is_left(monkeypatch, tmp_path):
    serving(monkeypatch, "import time; time.sleep(600)")
    server = EngineServer(EngineSettings(model_path="x", log_path=tmp_path / "engine.log"))
    server.start()
    with pytest.raises(DeadlineExceeded, match=rf"ending engine 0: processes \[.*{server.pid}"):
        await server.gone(within=0.1)  # the server was not killed
    await server.stop()


# The first start fails because its port is taken; the second serves.
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
        with contextlib.suppress(OSError):  # another program has the port, which is as good
            stack.enter_context(listener(port + 1))
        with pytest.raises(ConfigError, match=rf"engine_port={port + 1}.*cannot listen"):
            await pool.start()
    assert not pool.members


async def test_the_client_closes_idle_connections_long_before_the_server():
    """If the server closes a connection at the moment of a request, the request fails and the engine seems dead."""
    environment = server_environment(EngineSettings(model_path="m"), 0)
    client = connection.Connection("http://127.0.0.1:1")
    connector = client._session().connector
    assert connector is not None
    kept = connector._keepalive_timeout
    await client.close()
    assert kept == connection.IDLE_SECONDS
    assert kept + 1 < 5, "servers that we did not start close idle connections after five seconds"
    assert 10 * kept < float(environment["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"])
