"""The weights that engines serve now, kept for servers that restart or come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.engine.generation import EngineRejected
from tau2_lightning.rollout.engine.member import EngineMember

from .calls import load_files, paused

log = structlog.get_logger(__name__)


class Carrier(Protocol):
    """Sends weight files to servers that do not see the trainer's file system."""

    async def bring(self, member: EngineMember, snapshot: Snapshot) -> Sequence[str | Path]:
        """Send the files; returns their paths on the server."""

    async def loaded(self, member: EngineMember) -> None:
        """Called when the server's workers have loaded the files."""


@dataclass(frozen=True)
class Snapshot:
    """The weights of ``version``: weight files, then the folder of an adapter on top of them.

    ``carrier`` sends the files to servers that do not see them. ``label`` is then the name of these weights in the
    servers' stores, and ``digests`` are those of `DenseFiles`.
    """

    version: int
    files: tuple[Path, ...]
    adapter: Path | None = None
    carrier: Carrier | None = None
    label: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)

    async def load(self, member: EngineMember) -> None:
        """Load the weights into a server that runs no requests meanwhile."""
        if self.files and self.carrier:
            await load_files(member, self.version, await self.carrier.bring(member, self))
            await self.carrier.loaded(member)
        elif self.files:
            await load_files(member, self.version, self.files)
        if self.adapter:
            await member.client.load_adapter(self.version, self.adapter)
        await member.client.reset_prefix_cache()


class CurrentWeights:
    """The newest publication. ``published`` is false before the first; ``snapshot`` is None where none was kept."""

    def __init__(self) -> None:
        self.published = False
        self.snapshot: Snapshot | None = None

    @property
    def lost(self) -> bool:
        """Whether weights were published and no copy was kept."""
        return self.published and self.snapshot is None

    def replace(self, snapshot: Snapshot | None) -> None:
        """A publication begins; ``snapshot`` is its kept copy for servers that start later."""
        self.snapshot, self.published = snapshot, True

    async def replay(self, member: EngineMember) -> bool:
        """Load the current weights into a server that has started; returns False when no copy was kept.

        Call under the member's lock. A remote server may still work on requests that were sent before the connection
        to it was lost: it is paused meanwhile.
        """
        while True:
            member.client.model = member.client.adapter = None
            if not self.published:
                return True  # it was started from the current weights
            if (kept := self.snapshot) is None:
                return False
            try:
                await (kept.load(member) if member.server else paused(member, kept.load(member)))
            except (InfrastructureFault, EngineRejected):
                if self.snapshot is kept:
                    raise
            if self.snapshot is kept:  # else a publication began meanwhile, which replaced the files
                break
        member.version = kept.version
        log.info("engine took up current weights", engine=member.name, version=kept.version)
        return True
