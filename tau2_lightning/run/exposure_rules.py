"""Rules for what others may see or reach: secrets on command lines of engines, and servers beyond this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import flag_with_secret, masked
from tau2_lightning.errors import Violation


def check_exposure(config: RunConfig) -> Iterator[Violation]:
    """The violations of keys that would show a secret, or open the proxy without encryption."""
    user = config.econfig.user_engine.engine_args
    for key, given in (("rollout.engine_args", config.rollout.engine_args), ("econfig.user_engine.engine_args", user)):
        flags = [flag for argument in given if (flag := flag_with_secret(argument)) is not None]
        if flags:
            problem = f"would show the value of {flags[0]} to every user of this machine, in the list of processes"
            remedy = "Set the variable that the engine reads instead, such as HF_TOKEN; each engine has its own API key"
            yield Violation(key, _flags_only(key, given), problem, remedy)
    yield from check_listening(config)


def check_listening(config: RunConfig) -> Iterator[Violation]:
    """The violation of a proxy that other machines reach and whose keys and dialogues travel in the clear."""
    r = config.rollout
    if is_loopback(r.host) or r.plain_http_beyond_loopback:
        return
    problem = "opens the proxy beyond this machine, where HTTP shows its keys and dialogues to the network"
    remedy = (
        "Listen on 127.0.0.1 behind a tunnel or a server with TLS (docs/security.md), or set "
        "rollout.plain_http_beyond_loopback=true where the network itself is private"
    )
    yield Violation("rollout.host", r.host, problem, remedy)


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine reach a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _flags_only(key: str, given: list[str]) -> list[str]:
    """``given`` with the values of secret flags hidden, also those that are arguments of their own."""
    shown: list[str] = masked(key, list(given))
    for at, argument in enumerate(given[:-1]):
        if "=" not in argument and flag_with_secret(argument) is not None:
            shown[at + 1] = "***"
    return shown
