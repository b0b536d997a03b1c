"""A request of a session that runs, or that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tau2_lightning.errors import InfrastructureFault


@dataclass(eq=False)
class Request:
    """One request of a session's client that runs, or that failed for a reason which is not the client's.

    ``turns``: how many turns the session had when the request came. ``messages`` are None as long as they are not read.
    ``completion_id`` is that of the choices that it records. ``fault`` is None as long as the request runs. ``size``:
    bytes of the messages as JSON, counted when it has failed.
    """

    turns: int
    messages: Sequence[Mapping[str, Any]] | None = None
    fault: InfrastructureFault | None = None
    completion_id: str = ""
    size: int = 0

    @property
    def client_left(self) -> bool:
        """Whether it runs, or ended because its client did not wait for it."""
        return self.fault is None or self.fault.cause == "client_left"
