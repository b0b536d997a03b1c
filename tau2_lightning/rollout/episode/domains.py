"""The built-in workflow of a run: one tau2 workflow for each domain, chosen by the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .tau2 import Tau2Workflow


@dataclass(frozen=True)
class ByDomain:
    """Plays each task under the settings of its domain. ``workflows`` are by domain name."""

    workflows: Mapping[str, Tau2Workflow]

    async def run(self, data: Mapping[str, Any], **access: Any) -> dict[str, Any]:
        """See `Tau2Workflow.run`."""
        return await self.workflows[data["task"].domain].run(data, **access)
