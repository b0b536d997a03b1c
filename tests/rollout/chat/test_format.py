"""Rendering and parsing: deltas equal full renderings; caches, reserved arguments, stop tokens, unusual templates."""

from __future__ import annotations

from typing import Any

import pytest

from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.message import tools_key
from tau2_lightning.rollout.chat.template import ChatFormatError
from tests.rollout.proxy.fixtures import byte_tokenizer, template
from tests.rollout.proxy.rig import CALL, TOOLS

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "hello"}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "seen"}


def make(name: str = "qwen2_5", **kwargs: Any) -> ChatFormat:
    return ChatFormat(byte_tokenizer(template(name)), **kwargs)


@pytest.mark.parametrize("name", ["tiny", "hermes", "qwen2_5", "qwen3_instruct_2507"])
@pytest.mark.parametrize(
    ("reply", "said", "new"),
    [
        (REPLY, "hello", [USER]),
        (REPLY, "hello", [USER, {"role": "system", "content": "be brief"}, USER]),
        (CALLING, '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>', [RESULT]),
        (CALLING, '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>', [RESULT, RESULT, USER]),
    ],
)
def test_prompt_turn_and_delta_are_the_full_rendering(name: str, reply: Any, said: str, new: list[Any]) -> None:
    form = make(name)
    tokens = form.render([USER], TOOLS) + form.encode(said + "<|im_end|>")
    tokens += form.render_delta(reply, new, ended=True, tools=TOOLS)
    assert tokens == form.render([USER, reply, *new], TOOLS)


def test_a_truncated_turn_gets_its_end_from_the_template() -> None:
    form = make()
    whole, cut = (form.render_delta(REPLY, [USER], ended=ended) for ended in (True, False))
    assert cut == [form.tokenizer.eos_token_id, *whole]


def test_end_tokens_inside_a_result_do_not_end_the_turn() -> None:
    form = make()
    delta = form.render_delta(CALLING, [{**RESULT, "content": "a<|im_end|>b"}], ended=True)
    assert form.tokenizer.decode(delta).startswith("\n<|im_start|>user\n<tool_response>\na<|im_end|>b\n")


def test_equal_deltas_and_prompts_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    form = make()
    first = form.render_delta(CALLING, [RESULT], ended=True, tools=TOOLS)
    prompt = form.render([USER], TOOLS)
    monkeypatch.setattr(form._template, "tail", None)
    other_ids = {**RESULT, "tool_call_id": "another"}
    again = form.render_delta(CALLING, [other_ids], ended=True, tools=TOOLS)
    assert again == first and again is not first  # a caller may append to the result, so the cache returns copies
    monkeypatch.setattr(form._codec, "encode", None)
    assert form.render([USER], TOOLS) == prompt
    with pytest.raises(TypeError):
        form.render_delta(CALLING, [{**RESULT, "content": "different"}], ended=True, tools=TOOLS)


def test_arguments_reach_the_template_as_objects() -> None:
    # Qwen2.5's template would otherwise write the JSON text as a JSON string.
    text = make().render_text([USER, CALLING, RESULT], TOOLS)
    assert '{"name": "look", "arguments": {"a": 1}}' in text


def test_template_arguments() -> None:
    form = make("qwen3")
    assert form.render_text([USER], enable_thinking=False).endswith("<think>\n\n</think>\n\n")
    for reserved in ("chat_template", "tokenize", "tools", "messages", "add_generation_prompt"):
        with pytest.raises(ChatFormatError, match=reserved):
            form._template.render([USER], None, True, {reserved: "x"})


def test_reasoning_is_split_where_the_template_knows_it() -> None:
    said = f"<think>\nplan\n</think>\n\n{CALL}"
    thinking, plain = make("qwen3"), make("qwen2_5")
    ids = [*thinking.encode(said), thinking.tokenizer.eos_token_id]
    parsed = thinking.parse(ids, tools=TOOLS)
    assert (parsed.reasoning_content, parsed.content, len(parsed.tool_calls)) == ("plan", None, 1)
    unsplit = plain.parse(ids, tools=TOOLS)
    assert unsplit.reasoning_content is None and (unsplit.content or "").startswith("<think>")
    opened = make("qwen3_5_think")
    prompt = opened.render([USER])
    assert opened.parse(opened.encode("plan\n</think>\n\nok"), prompt_tail=prompt).reasoning_content == "plan"


def test_stop_tokens() -> None:
    tokenizer = byte_tokenizer(template("qwen2_5"), eos="<|endoftext|>")
    form = ChatFormat(tokenizer)
    # A base model's EOS differs from the token that its template writes after a turn; both end a turn.
    assert {tokenizer.decode([token]) for token in form.stop_token_ids} == {"<|endoftext|>", "<|im_end|>"}
    assert form.parse([*form.encode("hi"), tokenizer.eos_token_id]).content == "hi"
    assert form.render_delta(REPLY, [USER], ended=True) == make().render_delta(REPLY, [USER], ended=True)


def test_what_cannot_be_rendered_says_so() -> None:
    with pytest.raises(ChatFormatError, match="no chat template"):
        ChatFormat(byte_tokenizer(""))
    with pytest.raises(ChatFormatError, match="does not accept"):
        make("gemma").render([{"role": "assistant", "content": "first"}, USER])


def test_an_unknown_reasoning_parser_is_named() -> None:
    with pytest.raises(ValueError, match="reasoning_parser"):
        make(reasoning_parser="psychic")


def test_tools_key_is_the_order_too() -> None:
    swapped = [{"function": TOOLS[0]["function"], "type": "function"}]
    assert tools_key(TOOLS) == tools_key([dict(TOOLS[0])]) != tools_key(swapped) and tools_key(None) == b""
