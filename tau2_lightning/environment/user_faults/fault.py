"""A fault of the simulated user: a turn that breaks the rules that it plays by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "speaks_as_agent",
    "leaks_instructions",
    "stops_early",
    "transfers_early",
    "invents_ids",
    "ignores_question",
    "empty_turn",
    "repeats_itself",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class UserFault:
    """One fault. ``turn`` is the message's index in the dialogue, ``evidence`` the words that show it."""

    kind: Kind
    turn: int
    evidence: str
