"""Dialogues become exactly the tokens that a session would record, and the mask marks the assistant's turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.errors import ConfigError
from tau2_lightning.policy.dialogues import TextDialogue, encode_spans, read_dialogues, render_spans
from tau2_lightning.policy.tiny import chat_template, train_tokenizer

CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": "C1001"}'}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Help \U0001f4f5 me."},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "one"},
    {"role": "tool", "tool_call_id": "c", "content": "two"},
    {"role": "assistant", "content": "Done."},
    {"role": "user", "content": "Thanks"},
]
# A template of another family, without generation blocks; its rendering is append-only.
PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# A template that drops earlier assistant turns, like those that hide old reasoning.
FORGETFUL = (
    "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}[{{ m.role }}]{{ m.content }}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_segments_are_the_rendering_and_mark_the_assistants_turns() -> None:
    segments = render_spans(TextDialogue(MESSAGES), chat_template())
    tokenizer = train_tokenizer([text for text, _ in segments] * 3, 384)
    assert "".join(text for text, _ in segments) == tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    call = '<tool_call>\n{"name": "look", "arguments": {"at": "C1001"}}\n</tool_call>'
    assert [text for text, is_action in segments if is_action] == [
        f"Let me see.\n{call}\n{call}<|im_end|>",
        "Done.<|im_end|>",
    ]


def test_encoding_equals_the_template_tokenised_whole() -> None:
    segments = render_spans(TextDialogue(MESSAGES), chat_template())
    tokenizer = train_tokenizer([text for text, _ in segments] * 3, 384)
    encoded = encode_spans(segments, tokenizer)
    assert encoded.token_ids.tolist() == tokenizer.apply_chat_template(MESSAGES, return_dict=False)
    said = [int(token) for token in encoded.token_ids[encoded.action_mask]]
    assert tokenizer.decode(said) == "".join(text for text, is_action in segments if is_action)
    assert said.count(tokenizer.eos_token_id) == 2


def test_templates_without_generation_blocks_find_the_same_turns() -> None:
    words = [m | {"content": m["content"] or ""} for m in MESSAGES]
    segments = render_spans(TextDialogue(words), PLAIN)
    assert [text for text, is_action in segments if is_action] == ["Let me see.</s>", "Done.</s>"]


def test_a_template_that_rewrites_history_is_refused() -> None:
    with pytest.raises(ValueError, match="rewrites history"):
        render_spans(TextDialogue(MESSAGES), FORGETFUL)


def test_reading_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    tools = [{"type": "function", "function": {"name": "look"}}]
    lines = [json.dumps({"messages": MESSAGES, "tools": tools}), "", json.dumps(MESSAGES)]
    file.write_text("\n".join(lines))
    first, second = read_dialogues(file)
    assert first.messages == second.messages == MESSAGES
    assert first.tools == tools and not second.tools


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("not json", "no JSON"),
        ('{"messages": "hello"}', "no list of messages"),
        ('[{"role": "robot", "content": ""}]', "role 'robot'"),
        ('[{"role": "user", "content": "hi"}]', "no assistant message"),
        ("\n\n", "holds no dialogue"),
    ],
)
def test_bad_data_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_dialogues(file)
    with pytest.raises(ConfigError, match="no such file"):
        read_dialogues(tmp_path / "missing.jsonl")
