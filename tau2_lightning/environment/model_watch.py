"""What the run waits for at the environment's models, and what it used them for. Importing it is cheap."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet


@dataclass
class ModelUse:
    """What an endpoint was used for. Only the event loop's thread writes it; any thread may read.

    ``requests`` counts HTTP requests, ``retries`` those that repeat another, ``refused`` answers that asked for fewer
    requests. ``waited_s`` adds up, over questions, the seconds in the queue and between tries. ``cost`` is in dollars;
    None where the price of the model is not known.
    """

    requests: int = 0
    retries: int = 0
    refused: int = 0
    waited_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None


class Watched(Protocol):
    """A client as it is watched here. ``component`` is the model's part: ``user``, ``judge``."""

    use: ModelUse

    @property
    def component(self) -> str: ...

    def waits(self) -> str:
        """What is waited for, in words for the screen; empty when nothing is. May be called from any thread."""
        ...


_live: WeakSet[Watched] = WeakSet()
_lock = threading.Lock()


def watch(client: Watched) -> None:
    """Show and count ``client`` for as long as it lives."""
    with _lock:
        _live.add(client)


def waits_for_models() -> str:
    """What the run waits for at the environment's models, for the screen; empty when it waits for nothing."""
    return "; ".join(sorted(filter(None, (client.waits() for client in _clients()))))


def use_of_models() -> dict[str, float]:
    """What the models were used for since the process began, by ``<component>/<field of ModelUse>``."""
    total: dict[str, float] = {}
    for client in _clients():
        for name, value in vars(client.use).items():
            if value is None:
                continue
            key = f"{client.component}/{name}"
            total[key] = total.get(key, 0.0) + value
    return total


def _clients() -> list[Watched]:
    with _lock:
        return list(_live)
