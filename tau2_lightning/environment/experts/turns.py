"""The turns of an expert, and how they become a dialogue."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from tau2_lightning.environment.dialogue import Dialogue
from tau2_lightning.environment.telecom_expert import Act

from .seen import Seen

HOLD_ON = "YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON."
TRANSFER = "transfer_to_human_agents"
T = TypeVar("T")


@dataclass(frozen=True)
class Say:
    """A message to the user."""

    text: str


# Yields the next turn and receives the user's answer or the tool's result. Returns when only the farewell is left.
Talk = Generator[Act | Say, str, T]
Forgets = Callable[[str], bool]


class LeftOut(Exception):
    """No honest agent could have played the task against the scripted user; the text is the reason, without values."""


NOT_READ = "a fact that the task wants told is nowhere to read"


def never_said(arguments: list[str]) -> LeftOut:
    """The reason of a task whose ``arguments``, as ``Seen.missing`` names them, nobody mentions."""
    return LeftOut(f"nobody mentions {', '.join(sorted({one.split('=')[0] for one in arguments}))}")


def confirmed(proposal: str, act: Act) -> Talk[str]:
    """State an act, have it confirmed, do it. Returns the tool's result; raises LeftOut where the tool refuses."""
    yield Say(f"{proposal}\nDo you confirm this (yes/no)?")
    result = yield act
    if result.startswith("Error"):
        raise LeftOut(f"{act.name} refuses")
    return result


def handed_over(summary: str) -> Talk[None]:
    """Transfer the user to a human agent, as the policies prescribe it."""
    yield Act(TRANSFER, {"summary": summary})
    yield Say(HOLD_ON)


async def converse(dialogue: Dialogue, talk: Callable[[str], Talk[None]], seen: Seen) -> None:
    """Play the expert's ``talk``, made from the user's first message, to the end of ``dialogue``."""
    await dialogue.start()
    heard = dialogue.messages[-1]["content"]
    seen.add(heard)
    turns = talk(heard)
    turn: Act | Say = next(turns)
    for number in count():
        await dialogue.reply(as_message(turn, number))
        if dialogue.done:
            turns.close()
            return
        heard = dialogue.messages[-1]["content"] or ""
        seen.add(heard)
        try:
            turn = turns.send(heard)
        except StopIteration:
            turn = Say("Goodbye!")


def as_message(turn: Act | Say, number: int) -> dict[str, Any]:
    """The OpenAI message of a turn; ``number`` makes the id of its call."""
    if isinstance(turn, Say):
        return {"role": "assistant", "content": turn.text}
    function = {"name": turn.name, "arguments": json.dumps(dict(turn.arguments))}
    call = {"id": f"call_{number}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}
