"""Encodes dialogues as the rows that sessions with the same messages would record: the tokens that inference uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.policy.dialogues import EncodedDialogue, Message, TextDialogue
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.template import ChatFormatError

HistoryPolicy = Literal["keep", "branch"]


def encode_as_sessions(
    chat_format: ChatFormat, dialogues: Sequence[TextDialogue], history_policy: HistoryPolicy, **template_kwargs: Any
) -> tuple[list[EncodedDialogue], str]:
    """The rows of all dialogues, and a sentence that says how they were made.

    ``template_kwargs`` are those of a run's requests. Raises ConfigError, which names the dialogue, when the chat
    template does not accept its messages.
    """
    rows: list[EncodedDialogue] = []
    for number, dialogue in enumerate(dialogues):
        try:
            rows += session_rows(chat_format, dialogue, history_policy, **template_kwargs)
        except ChatFormatError as error:
            remedy = "Correct the dialogue, or choose another actor.chat_template"
            raise ConfigError([Violation("warm_start.data", f"dialogue {number + 1}", str(error), remedy)]) from error
    if len(rows) == len(dialogues):
        how = "one row per dialogue, each turn after the tokens that a session would hold"
    else:
        how = (
            f"{len(rows)} rows of {len(dialogues)} dialogues: the chat template rewrites history, and "
            "rollout.history_policy=branch begins a new row after each rewritten turn"
        )
    if chat_format.marks is None and any(_thinks(dialogue) for dialogue in dialogues):
        how += "; their reasoning is left out, because the chat template has no place for it"
    elif chat_format.marks is not None and not any(_thinks(dialogue) for dialogue in dialogues):
        how += "; no dialogue holds reasoning, so the policy learns to act without it"
    return rows, how


def _thinks(dialogue: TextDialogue) -> bool:
    return any(message.get("reasoning_content") for message in dialogue.messages)


def session_rows(
    chat_format: ChatFormat, dialogue: TextDialogue, history_policy: HistoryPolicy, **template_kwargs: Any
) -> Iterator[EncodedDialogue]:
    """The rows of one dialogue, each trained turn in exactly one of them.

    The prompt is rendered once. After each turn of the assistant, the tokens that the template appends are added. If a
    template rewrites earlier turns, ``keep`` continues with the tokens as they are, and ``branch`` begins a new row
    with a new rendering. What is ``given``, and a greeting before the first user message, belongs to the prompt,
    because the policy does not sample it. Raises ChatFormatError.
    """
    messages, tools = dialogue.messages, dialogue.tools
    if chat_format.marks is None:  # the policy samples no reasoning in this format
        messages = [{key: value for key, value in one.items() if key != "reasoning_content"} for one in messages]
    said = [at for at, message in enumerate(messages) if message["role"] == "assistant" and at >= dialogue.given]
    turns = [at for at in said if not _greets(messages, at)]
    if not turns:
        return
    tokens = chat_format.render(messages[: turns[0]], tools, **template_kwargs)
    acts = [False] * len(tokens)
    for at, following in zip(turns, [*turns[1:], None], strict=True):
        before, reply, new = messages[:at], messages[at], messages[at + 1 : following]
        sampled = chat_format.turn(before, reply, new, tools, **template_kwargs)
        tokens, acts = tokens + sampled, acts + [True] * len(sampled)
        if following is None:
            break
        if history_policy == "branch" and chat_format.rewrites_history(before, reply, new, tools, **template_kwargs):
            yield _encoded(tokens, acts)
            tokens = chat_format.render(messages[:following], tools, **template_kwargs)
            acts = [False] * len(tokens)
        else:
            delta = chat_format.render_delta(
                reply, new, ended=chat_format.ended(sampled), tools=tools, **template_kwargs
            )
            tokens, acts = tokens + delta, acts + [False] * len(delta)
    yield _encoded(tokens, acts)


def _greets(messages: Sequence[Message], at: int) -> bool:
    """Whether a message is a text of the assistant before any user message, and the user answers it."""
    roles = [message["role"] for message in messages]
    return (
        not messages[at].get("tool_calls")
        and all(role in ("system", "assistant") for role in roles[:at])
        and not any(message.get("tool_calls") for message in messages[:at])
        and roles[at + 1 : at + 2] == ["user"]
    )


def _encoded(tokens: Sequence[int], acts: Sequence[bool]) -> EncodedDialogue:
    return EncodedDialogue(np.array(tokens, np.int32), np.array(acts, np.bool_))
