"""What a simulated user plays by: its scenario and tau2's guidelines, in the form in which its turns are compared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

from .text import letters, plain, without_quotes, words

#: So many words in the wording of the instructions are no chance.
WORDS_IN_A_ROW = 6
# Words by which an instruction talks to the user or about the agent. A user who speaks for itself says "I" and "you".
_ADDRESS = frozenset({"you", "your", "you're", "you've", "you'd", "you'll", "yourself", "yours"})
_ROLES = frozenset({("the", "agent"), ("the", "user"), ("service", "agent"), ("the", "representative")})


@dataclass(frozen=True)
class Scenario:
    """What the user knows and must do.

    ``instructions`` is the text that the user gets, ``guidelines`` tau2's rules for all users. ``facts`` is the part
    of the instructions that the user may tell when it is asked. ``aloud`` is a text that the user reads out by design,
    as the scripted one does with its reason for calling. The first ``history`` messages of a dialogue are the task's.
    """

    instructions: str
    guidelines: str = ""
    facts: str = ""
    aloud: str = ""
    history: int = 0

    @classmethod
    def of(cls, task: Any, *, guidelines: str = "", reads_reason: bool = False) -> Scenario:
        """The scenario of a tau2 task. ``reads_reason``: the user reads its reason for calling out (a script)."""
        scenario, initial = task.user_scenario, task.initial_state
        given = scenario.instructions
        structured = not isinstance(given, str)
        reason = given.reason_for_call if structured else given
        facts = f"{given.reason_for_call}\n{given.known_info or ''}" if structured else given
        history = (initial.message_history if initial is not None else None) or ()
        return cls(str(scenario), guidelines, facts, reason if reads_reason else "", len(history))

    @cached_property
    def known_letters(self) -> str:
        """Letters and digits of all that the user was given."""
        return letters(self.instructions)

    def read_out(self, said: str) -> bool:
        """Whether ``said`` is the text that the user reads out."""
        return bool(self.aloud) and words(said) == words(self.aloud)

    def gave(self, run: tuple[str, ...]) -> bool:
        """Whether ``run``, of `WORDS_IN_A_ROW` words, is of the guidelines, or of the instructions and addresses the
        user. What the instructions quote is meant to be said."""
        return run in self._runs or run in _runs_of(self.guidelines)

    @cached_property
    def _runs(self) -> frozenset[tuple[str, ...]]:
        runs = _runs(without_quotes(self.instructions))
        return frozenset(run for run in runs if _ADDRESS.intersection(run) or _ROLES.intersection(pairwise(run)))

    @cached_property
    def allows_false_ids(self) -> bool:
        """Whether the user is to say ids that are wrong or made up."""
        return bool(_FALSE_IDS.search(plain(self.instructions)))


_ID = r"[^.\n]{0,30}\b(?:ids?|number|email|e-mail|address|zip|code|name)\b"
_FALSE_IDS = re.compile(
    r"\b(?:make up|made[- ]up|invent|fake)\b" + _ID + r"|\b(?:give|provide|say|tell|use|claim|mention)\b[^.\n]{0,40}"
    r"\b(?:wrong|incorrect|false|random|nonexistent|non-existent|another person's|someone else's)\b" + _ID
)


def _runs(text: str) -> list[tuple[str, ...]]:
    said = words(text)
    return [said[i : i + WORDS_IN_A_ROW] for i in range(len(said) - WORDS_IN_A_ROW + 1)]


@lru_cache(maxsize=8)
def _runs_of(guidelines: str) -> frozenset[tuple[str, ...]]:
    """The same for all tasks of a domain, and kept once."""
    return frozenset(_runs(guidelines))
