"""The thoughts of a user's model are split off in all forms that models and servers use."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tau2_lightning.environment.user_thinking import split_thoughts, thoughts_in_fields


@pytest.mark.parametrize(
    ("text", "said", "thought"),
    [
        ("<think>No names.</think>\n\nHi, I want to exchange it.", "Hi, I want to exchange it.", "No names."),
        ("Hi.", "Hi.", ""),
        ("  Hi.\n", "  Hi.\n", ""),
        ("<think>\n\n</think>\n\nHi.", "Hi.", ""),
        ("I think so. ###STOP###", "I think so. ###STOP###", ""),
        ("<think>###STOP###? No.</think>Go on.", "Go on.", "###STOP###? No."),
        ("hidden ###STOP###\n</think>\n\nGo on.", "Go on.", "hidden ###STOP###"),
        ("<think>never closed ###TRANSFER###", "", "never closed ###TRANSFER###"),
        ("Wait. <think>cut of", "Wait.", "cut of"),
        ("<think>a</think>One.<think>b</think> Two.", "One. Two.", "a\nb"),
        ("<think>a <think>b</think> c</think>Said.", "Said.", "b\na  c"),
        ("<THINK>a</THINK>Said.", "Said.", "a"),
        ("<think>only thoughts</think>\n", "", "only thoughts"),
        ("<think>a</think>Said </think> again.", "again.", "a\nSaid"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("parser", ["auto", "think"])
def test_blocks(text: str, said: str, thought: str, parser: str) -> None:
    assert split_thoughts(text, parser) == (said, thought)  # type: ignore[arg-type]


def test_marks_of_other_models_and_no_parser() -> None:
    assert split_thoughts("[THINK]a[/THINK]Said.", "auto") == ("Said.", "a")
    assert split_thoughts("<thinking>a</thinking>Said.", "auto") == ("Said.", "a")
    assert split_thoughts("[THINK]a[/THINK]Said.", "think") == ("[THINK]a[/THINK]Said.", "")
    assert split_thoughts("<think>a</think>Said.", None) == ("<think>a</think>Said.", "")


def test_fields_of_servers() -> None:
    assert thoughts_in_fields(SimpleNamespace(content="x", reasoning_content="a")) == "a"
    assert thoughts_in_fields(SimpleNamespace(content="x", reasoning_content=None, reasoning="b")) == "b"
    assert thoughts_in_fields(SimpleNamespace(content="x")) == ""
