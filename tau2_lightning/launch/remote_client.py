"""Local process for a command that runs on another node: ``python -I remote_client.py HOST:PORT REQUEST``.

It prints what the command prints, and ends when the command ends. The command ends when this process ends, when its
standard input ends, or on SIGTERM. REQUEST is JSON with ``name``, ``command``, ``devices`` and ``forward``, the names
of the environment variables that are sent along. The job's key is in the environment. It runs as a plain script, so it
imports the standard library only.
"""

from __future__ import annotations

import hmac
import json
import os
import select
import signal
import socket
import sys

KEY_VARIABLE = "TAU2_LIGHTNING_JOB_KEY"
CONNECT_SECONDS = 30.0


def main(arguments: list[str]) -> int:
    """Run the command of ``arguments`` (address, request); returns when its output ends."""
    target, text = arguments
    request = json.loads(text)
    environment = {name: os.environ[name] for name in request.pop("forward") if name in os.environ}
    body = json.dumps({**request, "environment": environment})
    host, _, port = target.rpartition(":")
    try:
        connection = socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS)
        with connection.makefile("r") as lines:
            nonce = lines.readline().strip()
        proof = hmac.new(os.environ[KEY_VARIABLE].encode(), f"{nonce}\n{body}".encode(), "sha256").hexdigest()
        connection.sendall(f"{proof}\n{body}\n".encode())
    except OSError as error:
        print(f"node agent at {target} does not answer: {error}", flush=True)
        return 1
    connection.settimeout(None)
    signal.signal(signal.SIGTERM, lambda *_: connection.shutdown(socket.SHUT_WR))
    while True:
        readable, _, _ = select.select([connection, sys.stdin], [], [])
        if sys.stdin in readable and not os.read(sys.stdin.fileno(), 1):
            return 0  # the parent has ended; closing the connection ends the command
        if connection in readable:
            try:
                output = connection.recv(1 << 16)
            except ConnectionError:
                return 1
            if not output:
                return 1
            os.write(sys.stdout.fileno(), output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
