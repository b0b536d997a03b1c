"""The mistakes in an agent's reply, by tau2's rules."""

from __future__ import annotations

from collections import Counter

from . import tau2_api as api
from .blueprints import THINK
from .replies import Call, Reply
from .settings import EnvironmentSettings

DONE = api.LLMSoloAgent.STOP_FUNCTION_NAME


def fatal_mistake(reply: Reply, solo_mode: bool) -> str | None:
    """The kind of mistake for which tau2 ends the episode with AGENT_ERROR, or None."""
    has_text = bool(reply.content.strip())
    if not reply.calls:
        if not has_text:
            return "empty_reply"
        return "no_tool_call" if solo_mode else None
    # tau2 would take the token for a stop, with calls outstanding that nothing ever answers.
    if solo_mode and api.LLMSoloAgent.STOP_TOKEN in reply.content:
        return "stop_token_in_text"
    return None


def name_mistakes(calls: tuple[Call, ...], known: frozenset[str], settings: EnvironmentSettings) -> Counter[str]:
    """Mistakes in the choice of tools, by kind: ``unknown_tool`` and ``done_beside_others``."""
    found: Counter[str] = Counter()
    extra = {THINK} if settings.add_thinking_tool else set()
    found["unknown_tool"] += sum(call.name not in known and call.name not in extra for call in calls)
    if settings.solo_mode and len(calls) > 1 and any(call.name == DONE for call in calls):
        found["done_beside_others"] += 1
    return found
