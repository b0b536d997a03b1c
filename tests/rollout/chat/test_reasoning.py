"""Thoughts are split off by the marks of the model's template, whole and streamed alike."""

from __future__ import annotations

import pytest

from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.message_stream import ReasoningStream
from tau2_lightning.rollout.chat.reasoning import MARKS, Marks, marks_for, split_reasoning
from tests.rollout.proxy.fixtures import SPECIAL, byte_tokenizer, template

GPT_OSS = MARKS["openai_gptoss"]
TURNS = {
    "think": "<think>\nplan <b> \n</think>\n\nanswer",
    "mistral": "[THINK]plan[/THINK]answer",
    "gemma4": "<|channel>thought\nplan\n<channel|>answer",
    "openai_gptoss": "<|channel|>analysis<|message|>plan<|end|><|start|>assistant<|channel|>final<|message|>answer",
    "seed_oss": "<seed:think>plan</seed:think>answer",
    "cohere_command3": "<|START_THINKING|>plan<|END_THINKING|><|START_RESPONSE|>answer",
}


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        ("qwen3", "think"),
        ("qwen3_5_think", "think"),
        ("deepseek_r1_distill", "think"),
        ("glm4moe", "think"),
        ("nemotron_3_nano", "think"),
        ("gptoss", "openai_gptoss"),
        ("gemma4", "gemma4"),
    ],
)
def test_auto_takes_the_marks_of_the_template(name: str, marks: str) -> None:
    assert marks_for("auto", template(name), byte_tokenizer(template(name))) == MARKS[marks]


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "phi3", "gemma3", "tiny", "hermes", "qwen3_instruct_2507"])
def test_auto_finds_none_where_there_are_none(name: str) -> None:
    assert marks_for("auto", template(name), byte_tokenizer(template(name))) is None


def test_auto_takes_the_marks_of_special_tokens_that_the_template_does_not_write() -> None:
    tokenizer = byte_tokenizer(template("tiny"), (*SPECIAL, "[THINK]", "[/THINK]"))
    assert marks_for("auto", tokenizer.chat_template, tokenizer) == MARKS["mistral"]
    assert marks_for(None, tokenizer.chat_template, tokenizer) is None
    assert marks_for("think", tokenizer.chat_template, tokenizer) == MARKS["think"]


@pytest.mark.parametrize("name", TURNS)
def test_a_turn_is_thought_and_answer(name: str) -> None:
    reasoning, rest = split_reasoning(TURNS[name], marks=MARKS[name])
    assert (reasoning or "").startswith("plan") and rest == "answer"


def pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("name", TURNS)
@pytest.mark.parametrize("opened", [False, True])
def test_a_stream_gives_the_same(name: str, size: int, opened: bool) -> None:
    marks, whole = MARKS[name], TURNS[name]
    for text in (whole, "no thought, <b>", marks.closing, marks.opening, whole[: len(whole) // 2], *marks.headers, ""):
        text = text.removeprefix(marks.opening) if opened else text
        stream = ReasoningStream(marks, open_at_start=opened)
        parts = pieces(text, size) or [""]
        got = [stream.feed(part, last=at + 1 == len(parts)) for at, part in enumerate(parts)]
        told = "".join(reasoning for reasoning, _ in got), "".join(content for _, content in got)
        reasoning, rest = split_reasoning(text, open_at_start=opened, marks=marks)
        assert told == ((reasoning or ""), rest), text


def test_the_prompt_may_open_the_block() -> None:
    source = template("gptoss")
    form = ChatFormat(byte_tokenizer(template("tiny"), (*SPECIAL, "[THINK]", "[/THINK]")), reasoning_parser="mistral")
    assert form.opens_reasoning(form.encode("hi [THINK]")) and not form.opens_reasoning(form.encode("[THINK][/THINK]"))
    assert GPT_OSS.sign in source
    plain = ChatFormat(byte_tokenizer(template("tiny")), reasoning_parser=None)
    assert not plain.opens_reasoning(plain.encode("<think>"))


@pytest.mark.slow
def test_other_names_are_vllms() -> None:
    pytest.importorskip("vllm")
    tokenizer = byte_tokenizer(template("tiny"))
    assert marks_for("step3", "", tokenizer) == Marks("<think>", "</think>")
    with pytest.raises(ValueError, match=r"psychic.*use auto, null or one of .*qwen3"):
        marks_for("psychic", "", tokenizer)
    with pytest.raises(ValueError, match="without marks"):
        marks_for("granite", "", tokenizer)
