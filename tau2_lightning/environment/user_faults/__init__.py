"""Faults of the simulated user, found by rules in its turns: nothing random, no model. Imports nothing of tau2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .agent_speech import speaks_as_agent
from .endings import stops_early, transfers_early
from .fault import KINDS, Kind, UserFault
from .invented_ids import invents_ids
from .leaks import leaks_instructions
from .nothing_new import repeats_itself, says_nothing
from .questions import ignores_question
from .scenario import Scenario
from .turns import UserTurn, user_turns

__all__ = ["KINDS", "Kind", "Scenario", "UserFault", "UserTurn", "find_user_faults", "user_turns"]


def find_user_faults(scenario: Scenario, messages: Sequence[Mapping[str, Any]]) -> tuple[UserFault, ...]:
    """The faults of the user in a dialogue, in the order of its turns, at most one of a kind in each turn.

    ``messages`` are tau2's, as JSON-able data (an ``EpisodeOutcome.simulation``'s): the rules read the text that was
    said, never what the user thought.
    """
    faults: list[UserFault] = []
    earlier: list[UserTurn] = []
    for turn in user_turns(messages, history=scenario.history):
        if turn.index < scenario.history:
            earlier.append(turn)
            continue
        reads_out = len(turn.heard) < 2 and scenario.read_out(turn.said)
        found: dict[Kind, str | None] = {"empty_turn": says_nothing(turn)}
        if found["empty_turn"] is None:
            found = {
                "leaks_instructions": None if reads_out else leaks_instructions(turn, scenario),
                "speaks_as_agent": None if reads_out else speaks_as_agent(turn),
                "stops_early": stops_early(turn, scenario),
                "transfers_early": transfers_early(turn),
                "invents_ids": invents_ids(turn, scenario),
                "repeats_itself": repeats_itself(turn, earlier),
                "ignores_question": ignores_question(earlier[-1], turn, scenario) if earlier else None,
            }
        faults += [UserFault(kind, turn.index, evidence) for kind, evidence in found.items() if evidence is not None]
        earlier.append(turn)
    return tuple(faults)
