"""Which expert plays a task's agent, and one episode of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tau2_lightning.environment.dialogue import Dialogue
from tau2_lightning.environment.scoring import plan_of
from tau2_lightning.environment.settings import EnvironmentSettings, TaskRef
from tau2_lightning.environment.tasks import get_task

from .airline import AirlineExpert
from .flights import Routes
from .retail import RetailExpert
from .seen import Seen, unfounded
from .telecom import TelecomExpert
from .turns import Forgets, LeftOut, Talk, converse
from .wanted import wanted_of

DOMAINS = ("retail", "airline", "telecom", "telecom-workflow")


def has_expert(settings: EnvironmentSettings) -> bool:
    """Whether an honest expert plays the domain's dialogues. Solo mode has no dialogue."""
    return settings.domain in DOMAINS and not settings.solo_mode


async def play_honestly(dialogue: Dialogue, task: TaskRef, settings: EnvironmentSettings, forgets: Forgets) -> None:
    """Play ``dialogue`` of ``task`` to its end by the domain's expert; ``forgets`` decides by a tool's name whether a
    change is left out. Raises LeftOut where nobody can play it honestly.
    """
    plan = plan_of(settings)
    policy = plan.policy_for(get_task(task))
    seen = Seen(policy, dialogue.tools)
    await converse(dialogue, _talk(task, settings, seen, forgets), seen)
    if found := unfounded(dialogue.messages, dialogue.tools, policy):
        raise LeftOut(f"nobody mentions {', '.join(sorted({one.split('=')[0] for one in found}))}")


def _talk(task: TaskRef, settings: EnvironmentSettings, seen: Seen, forgets: Forgets) -> Callable[[str], Talk[None]]:
    plan, tau2_task = plan_of(settings), get_task(task)
    if settings.domain.startswith("telecom"):
        return TelecomExpert(seen, forgets, frozenset(tool.name for tool in plan.user_tools_list)).talk
    wanted = wanted_of(tau2_task, settings)
    if settings.domain == "airline":
        return AirlineExpert(wanted, seen, forgets, plan.once("routes", _routes)).talk
    return RetailExpert(wanted, seen, forgets).talk


def _routes(environment: Any) -> Routes:
    return {number: (flight.origin, flight.destination) for number, flight in environment.tools.db.flights.items()}
