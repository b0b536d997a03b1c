"""Ports and addresses of this machine."""

from __future__ import annotations

import socket


def free_port(host: str, port: int = 0) -> int:
    """``port``, or any free one for 0, after a check that it is free at ``host``. Raises OSError when it is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def own_address(towards: str) -> str:
    """The address of this machine as seen from the host ``towards``. Raises OSError without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))  # sends nothing; the kernel picks the outgoing interface
        return str(probe.getsockname()[0])
