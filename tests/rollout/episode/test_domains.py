"""Each task is played with the settings of its own domain, although domains share task ids."""

from __future__ import annotations

from typing import Any

from tau2_lightning.environment import TaskRef
from tau2_lightning.rollout.episode.domains import ByDomain
from tau2_lightning.rollout.episode.workflow import AgentWorkflow, takes_client


class Named:
    def __init__(self, name: str) -> None:
        self.name = name

    async def run(self, data: Any, *, client: Any, **_: Any) -> dict[str, Any]:
        return {"reward": 1.0, "by": self.name, "task": data["task"].task_id, "client": client}


async def test_the_tasks_domain_decides() -> None:
    workflow: Any = ByDomain({name: Named(name) for name in ("airline", "retail")})  # type: ignore[misc]
    assert isinstance(workflow, AgentWorkflow) and takes_client(workflow)
    play: Any = workflow.run
    for domain in ("retail", "airline"):
        played = await play({"task": TaskRef(domain, "test", "0", False, "")}, client=7, base_url="")
        assert (played["by"], played["client"]) == (domain, 7)
