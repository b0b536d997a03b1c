"""What a weight transport is, and what it uses of a publication."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from tau2_lightning.rollout.engine.client import EngineClient
from tau2_lightning.rollout.engine.member import EngineMember

from .wire import Bucket


class Delivery(Protocol):
    """The interface of a publication that a transport uses."""

    async def deliver(self, call: Callable[[EngineClient], Coroutine[Any, Any, Any]]) -> None:
        """Make one call to every engine; returns when all have loaded what it brings."""

    def part(self, name: Literal["write"]) -> AbstractContextManager[None]:
        """Count the time inside as time for writing."""


class Transport(Protocol):
    """Brings buckets to engines whose weight update has started. ``on_cpu`` asks for buckets of CPU tensors."""

    on_cpu: bool

    async def prepare(self, members: Sequence[EngineMember]) -> None:
        """Agree with these engines on what a publication needs."""

    async def send(self, name: str, bucket: Bucket, delivery: Delivery) -> None:
        """Deliver one bucket of contiguous tensors. They may be freed when this returns."""
