"""The user's turns in a dialogue, each with what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .text import letters, without_tokens

#: So many characters of a text are read: the first of a user's, the last of an agent's, whose questions come last. A
#: model that babbles on must not hold up the other episodes while its text is searched.
CHARACTERS_READ = 4000


@dataclass(frozen=True)
class UserTurn:
    """One text of the user.

    ``index`` is its place in the dialogue, ``text`` what was said with tau2's tokens, ``said`` the same without them.
    ``heard`` are the agent's texts before it, oldest first; ``seen`` holds the letters and digits of these and of the
    user's own tool results. ``acted``: the user used a tool since its text before. ``transferred``: the agent has
    called a tool that transfers.
    """

    index: int
    text: str
    heard: tuple[str, ...] = ()
    seen: str = ""
    acted: bool = False
    transferred: bool = False
    said: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "said", without_tokens(self.text)[:CHARACTERS_READ])

    @property
    def asked(self) -> str:
        """The agent's newest text; empty before its first."""
        return self.heard[-1] if self.heard else ""


def user_turns(messages: Sequence[Mapping[str, Any]], *, history: int = 0) -> Iterator[UserTurn]:
    """The user's texts in ``messages`` (tau2's, as JSON-able data). Those of the first ``history`` messages are the
    task's: the user may use what they say."""
    heard: list[str] = []
    seen: list[str] = []
    acted = transferred = False
    for index, message in enumerate(messages):
        text, calls = message.get("content") or "", message.get("tool_calls") or ()
        match message.get("role"):
            case "assistant":
                transferred |= any("transfer" in call["name"] for call in calls)
                if text.strip() and not calls:
                    heard.append(text[-CHARACTERS_READ:])
                    seen.append(letters(text))
            case "tool" if message.get("requestor") == "user":
                seen.append(letters(text))
            case "user" if calls:
                acted = True
            case "user":
                yield UserTurn(index, text, tuple(heard), " ".join(seen), acted, transferred)
                acted = False
                if index < history:
                    seen.append(letters(text))
