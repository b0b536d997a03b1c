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
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from . import watchdog
from .children import end_children

GRACE_SECONDS = 8.0
HANDSHAKE_SECONDS = 30.0  # from the connection to the end of its request
LONGEST_REQUEST = 1 << 20
LONGEST_PROOF = 128  # hexadecimal SHA-256 has 64 characters
STRANGERS = 64  # connections that have not proved yet that they know the key
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
        self.strangers = threading.BoundedSemaphore(STRANGERS)
        self._running: set[subprocess.Popen[bytes]] = set()
        threading.Thread(target=self.serve_forever, name="commands of other nodes", daemon=True).start()

    @property
    def address(self) -> str:
        """``host:port`` of the server."""
        host, port = self.server_address[:2]
        return f"{host!s}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread of its own; refuse it while ``STRANGERS`` others have not shown the key."""
        if not self.strangers.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note in one line that a connection ended with an error: a stranger must not fill the log with tracebacks."""
        print(f"node agent: the connection of {client_address[0]} failed: {sys.exc_info()[1]!r}", file=sys.stderr)

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
        try:
            text = self._proved()
        finally:
            self.server.strangers.release()
        if text is None:
            return
        self.request.settimeout(None)
        request = json.loads(text)
        with self.server.turns[request["name"]]:
            self._run(request)

    def _proved(self) -> str | None:
        """The request, if whoever sent it in time knows the key; None for everybody else."""
        nonce, ends = secrets.token_hex(16), time.monotonic() + HANDSHAKE_SECONDS
        try:
            self.request.settimeout(HANDSHAKE_SECONDS)
            self.request.sendall(f"{nonce}\n".encode())
            proof = _line(self.request, LONGEST_PROOF, ends)
            text = _line(self.request, LONGEST_REQUEST, ends)
        except (OSError, ValueError):
            return None
        # As bytes: strings with characters beyond ASCII cannot be compared.
        known = hmac.compare_digest(proof.encode(), signature(self.server.key, nonce, text).encode())
        return text if known else None

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


def _line(connection: socket.socket, longest: int, ends: float) -> str:
    """One line of at most ``longest`` bytes, without reading beyond it. Raises ValueError when the stream ends or the
    line is too long, TimeoutError when it is not complete at ``ends`` (of the monotonic clock), however it comes."""
    received = bytearray()
    while not received.endswith(b"\n"):
        connection.settimeout(max(0.001, ends - time.monotonic()))
        byte = connection.recv(1)
        if not byte or len(received) > longest:
            raise ValueError("no line")
        if time.monotonic() > ends:
            raise TimeoutError("no complete line")
        received += byte
    return received[:-1].decode(errors="replace")


def visible(indices: Sequence[int]) -> list[str]:
    """Names of this node's visible CUDA devices at ``indices``, for ``CUDA_VISIBLE_DEVICES``. Raises IndexError."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [names.split(",")[index] if names else str(index) for index in indices]
