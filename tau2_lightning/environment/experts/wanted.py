"""What tau2's evaluator wants of a task: the one thing about it that an expert knows without being told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.scoring import plan_of
from tau2_lightning.environment.settings import EnvironmentSettings
from tau2_lightning.environment.telecom_expert import Act

from .turns import TRANSFER


@dataclass(frozen=True)
class Wanted:
    """``writes`` change something, in this order; gold actions that tau2's tools refuse are not among them. ``reads``
    are the look-ups of the gold solution that find something, ``sums`` its calculations. ``facts`` must be told to the
    user; ``transfers``: the gold solution transfers to a human.
    """

    writes: tuple[Act, ...]
    reads: tuple[Act, ...]
    sums: tuple[str, ...]
    facts: tuple[str, ...]
    transfers: bool

    def read(self, tool: str, argument: str) -> tuple[str, ...]:
        """The values of ``argument`` in the gold look-ups by ``tool``, in order."""
        return tuple(str(act.arguments[argument]) for act in self.reads if act.name == tool)


def wanted_of(task: Any, settings: EnvironmentSettings) -> Wanted:
    """What tau2's ``task`` wants."""
    plan, criteria = plan_of(settings), task.evaluation_criteria
    environment = plan.environment(task)
    writes, reads, sums, transfers = list[Act](), list[Act](), list[str](), False
    for number, action in enumerate((criteria.actions if criteria is not None else None) or ()):
        act = Act(action.name, action.arguments)
        call = api.ToolCall(id=str(number), name=act.name, arguments=dict(act.arguments), requestor=action.requestor)
        if environment.get_response(call).error:
            continue
        if act.name == TRANSFER:
            transfers = True
        elif act.name == "calculate":
            sums.append(str(act.arguments["expression"]))
        else:
            (writes if plan.tool_types[act.name].value == "write" else reads).append(act)
    facts = (criteria.communicate_info if criteria is not None else None) or ()
    return Wanted(tuple(writes), tuple(reads), tuple(sums), tuple(facts), transfers)
