"""Server that runs commands on its node for clients with the job's key: rank 0 starts engines on other nodes with it.

A command lives as long as its connection: its output comes back over it, and when the connection closes for any reason,
the command and all its processes end. The key is never sent: each request is signed together with a fresh number from
the server (HMAC-SHA256).
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import select
import socket
import socketserver
import subprocess
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from . import watchdog
from .children import end_children

GRACE_SECONDS = 8.0
HANDSHAKE_SECONDS = 30.0
LONGEST_REQUEST = 1 << 20
CHUNK = 1 << 16


def signature(key: str, nonce: str, request: str) -> str:
    """Hexadecimal HMAC-SHA256 that proves knowledge of ``key`` for the connection of ``nonce``."""
    return hmac.new(key.encode(), f"{nonce}\n{request}".encode(), "sha256").hexdigest()


class CommandServer(socketserver.ThreadingTCPServer):
    """Listens on ``host`` at a free port. A request names a command, environment variables and device indices.

    Commands of the same ``name`` never overlap: the next one starts when the previous one has ended.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, key: str) -> None:
        super().__init__((host, 0), _Handler)
        self.key = key
        self.turns: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._running: set[subprocess.Popen[bytes]] = set()
        threading.Thread(target=self.serve_forever, name="commands of other nodes", daemon=True).start()

    @property
    def address(self) -> str:
        """``host:port`` of the server."""
        host, port = self.server_address[:2]
        return f"{host!s}:{port}"

    def launch(self, request: dict[str, Any]) -> subprocess.Popen[bytes]:
        """Start the request's command under a watchdog that ends it with this process."""
        environment = os.environ | request["environment"]
        if request["devices"]:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible(request["devices"]))
        process = subprocess.Popen(
            watchdog.guarded(request["command"], GRACE_SECONDS),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self._running.add(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Ask the command to end; after ``GRACE_SECONDS`` the watchdog kills its processes."""
        end_children([process], GRACE_SECONDS + 5)
        self._running.discard(process)

    def close(self) -> None:
        """End every command and stop listening."""
        self.shutdown()
        for process in list(self._running):
            self.end(process)
        self.server_close()


class _Handler(socketserver.BaseRequestHandler):
    server: CommandServer
    request: socket.socket

    def handle(self) -> None:
        self.request.settimeout(HANDSHAKE_SECONDS)
        nonce = secrets.token_hex(16)
        self.request.sendall(f"{nonce}\n".encode())
        try:
            proof, text = _line(self.request), _line(self.request)
        except (TimeoutError, ValueError):
            return  # not a client of ours
        if not hmac.compare_digest(proof, signature(self.server.key, nonce, text)):
            return
        self.request.settimeout(None)
        request = json.loads(text)
        with self.server.turns[request["name"]]:
            self._run(request)

    def _run(self, request: dict[str, Any]) -> None:
        process = self.server.launch(request)
        assert process.stdout is not None
        try:
            while True:
                output_end, connection = process.stdout.fileno(), self.request.fileno()
                readable, _, _ = select.select([output_end, connection], [], [])
                if connection in readable and not self.request.recv(CHUNK):
                    return
                if output_end in readable:
                    output = os.read(output_end, CHUNK)
                    if not output:
                        return
                    self.request.sendall(output)
        except OSError:
            return  # the client has left
        finally:
            self.server.end(process)
            process.stdout.close()


def _line(connection: socket.socket) -> str:
    """One line, without reading beyond it. Raises ValueError when the stream ends or the line is too long."""
    received = bytearray()
    while not received.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(received) > LONGEST_REQUEST:
            raise ValueError("no line")
        received += byte
    return received[:-1].decode(errors="replace")


def visible(indices: Sequence[int]) -> list[str]:
    """Names of this node's visible CUDA devices at ``indices``, for ``CUDA_VISIBLE_DEVICES``. Raises IndexError."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [names.split(",")[index] if names else str(index) for index in indices]
