"""Free ports are free, taken ones are refused, and the own address is the one that the other host sees."""

from __future__ import annotations

import socket

import pytest

from tau2_lightning.launch.net import free_port, own_address


def test_a_free_port_can_be_listened_on_and_a_taken_one_is_refused():
    port = free_port("127.0.0.1")
    assert free_port("127.0.0.1", port) == port
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        server.listen()
        with pytest.raises(OSError, match="in use"):
            free_port("127.0.0.1", port)
        assert free_port("127.0.0.1") != port


def test_own_address_faces_the_other():
    assert own_address("127.0.0.1") == "127.0.0.1"
