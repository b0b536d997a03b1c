"""Dialogues as supervised data: OpenAI messages to tokens, with a mask over the assistant's turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tau2_lightning.errors import ConfigError, Violation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
_ROLES = {"system", "user", "assistant", "tool"}


@dataclass(frozen=True)
class TextDialogue:
    """One supervised dialogue: OpenAI chat ``messages`` and, for templates that render them, ``tools``.

    The first ``given`` messages are part of the prompt, whoever says them: nothing in them is trained. ``task`` names
    the task that is played; dialogues of one task are held out together.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    given: int = 0
    task: str = ""


@dataclass(frozen=True)
class EncodedDialogue:
    """``token_ids`` int32 [T] and ``action_mask`` bool [T], True at tokens of the assistant."""

    token_ids: npt.NDArray[np.int32]
    action_mask: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.token_ids)


def render_spans(dialogue: TextDialogue, template: str, **template_variables: Any) -> list[tuple[str, bool]]:
    """Render a dialogue into consecutive ``(text, is_action)`` segments whose concatenation is the rendered text.

    An action is the text after a generation prompt, its end-of-turn token included; in the messages that are
    ``dialogue.given`` there is none. Templates with
    ``{% generation %}`` blocks are rendered once. For others each assistant turn is located by rendering the messages
    before it, which needs a template that renders history append-only. Raises ValueError when it does not.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(messages: Sequence[Message], **options: Any) -> tuple[str, list[tuple[int, int]]]:
        texts, spans = render_jinja_template(
            [list(messages)],
            tools=list(dialogue.tools) or None,
            chat_template=template,
            **template_variables,
            **options,
        )
        return texts[0], spans[0] if spans else []

    if "endgeneration" in template:
        text, spans = render(dialogue.messages, return_assistant_tokens_mask=True)
    else:
        text, _ = render(dialogue.messages)
        spans = []
        for i, message in enumerate(dialogue.messages):
            if message["role"] == "assistant":
                start = render(dialogue.messages[:i], add_generation_prompt=True)[0]
                whole = render(dialogue.messages[: i + 1])[0].rstrip("\n")
                if not (whole.startswith(start) and text.startswith(whole)):
                    raise ValueError(f"the chat template rewrites history: turn {i} is not rendered append-only")
                spans.append((len(start), len(whole)))
    segments, position = [], 0
    given = sum(message["role"] == "assistant" for message in dialogue.messages[: dialogue.given])
    for number, (start_at, end_at) in enumerate(spans):
        segments += [(text[position:start_at], False), (text[start_at:end_at], number >= given)]
        position = end_at
    return [segment for segment in [*segments, (text[position:], False)] if segment[0]]


def encode_spans(segments: Sequence[tuple[str, bool]], tokenizer: PreTrainedTokenizerBase) -> EncodedDialogue:
    """Tokenise rendered segments one by one, as a session does: prompt, sampled turn, appended text, and so on."""
    pieces = tokenizer([text for text, _ in segments], add_special_tokens=False)["input_ids"]
    token_ids = np.fromiter((token for piece in pieces for token in piece), dtype=np.int32)
    flags = [is_action for _, is_action in segments]
    return EncodedDialogue(token_ids, np.repeat(np.array(flags, dtype=bool), [len(piece) for piece in pieces]))


def read_dialogues(path: Path | str, key: str = "warm_start.data") -> list[TextDialogue]:
    """Read JSONL with one dialogue per line: ``{"messages": [...], "tools": [...]}`` or a bare list of messages.

    Raises ConfigError, which names the first bad line, when the file is missing, empty or not in OpenAI's format.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError([Violation(key, str(path), "no such file", "Give a JSONL file of OpenAI messages")])
    dialogues = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        problem, dialogue = _parse_line(line)
        if dialogue is None:
            remedy = 'Each line is {"messages": [{"role": "user", "content": "..."}, ...]}'
            raise ConfigError([Violation(key, f"{path}:{number}", problem, remedy)])
        dialogues.append(dialogue)
    if not dialogues:
        raise ConfigError([Violation(key, str(path), "holds no dialogue", "Give a JSONL file of OpenAI messages")])
    return dialogues


def _parse_line(line: str) -> tuple[str, TextDialogue | None]:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        return f"is no JSON ({error})", None
    messages = data.get("messages") if isinstance(data, dict) else data
    tools = data.get("tools") or [] if isinstance(data, dict) else []
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return "holds no list of messages", None
    roles = [message.get("role") for message in messages]
    if unknown := [role for role in roles if role not in _ROLES]:
        return f"has a message of role {unknown[0]!r}", None
    if "assistant" not in roles:
        return "has no assistant message to learn from", None
    return "", TextDialogue(messages, tools)
