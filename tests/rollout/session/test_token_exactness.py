"""Random conversations with real templates: the export equals the sampled turns, and each prompt extends the last."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.proxy.chat_service import ChatService
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionStore
from tests.rollout.proxy.fixtures import ScriptedEngine, byte_tokenizer, template
from tests.rollout.proxy.rig import TOOLS

TEMPLATES = ["tiny", "qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_5_think", "glm4moe", "llama3_1"]
EOS = {"glm4moe": "<|user|>", "llama3_1": "<|eot_id|>"}

# Texts with Unicode, template syntax, end-of-turn tokens as plain text and tags, and empty texts.
plain = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
nasty = st.sampled_from(
    ["<|im_end|>", "<|im_start|>assistant\n", "{{ x }}", "</tool_call>", "<tool_response>", "\n\n", ""]
)
text = st.one_of(plain, nasty, st.tuples(plain, nasty, plain).map("".join))
calls = st.builds(
    '<tool_call>\n{{"name": "look", "arguments": {}}}\n</tool_call>'.format,
    st.sampled_from(["{}", '{"a":1}', '{"b": [1.50, null], "a": "\\u00e9 é"}', '{ "z" : {} }']),
)
thinking = st.builds("<think>\n{}\n</think>\n\n".format, st.text("abc \n", max_size=6))
sampled = st.one_of(
    plain,
    calls,
    st.tuples(plain, calls, calls).map("\n".join),
    st.tuples(thinking, st.one_of(plain, calls)).map("".join),
    st.sampled_from(['<tool_call>\n{"name": "look"', "<think>\nnever closed", "<tool_call>{}</tool_call>"]),
)
turn = st.fixed_dictionaries(
    {
        "say": sampled,
        "truncate": st.booleans(),
        "tools": st.lists(text, max_size=3),
        "user": text,
        "echo": st.sampled_from(["same", "bare", "respelt"]),
    }
)
conversations = st.fixed_dictionaries(
    {"system": st.one_of(st.none(), text), "user": text, "turns": st.lists(turn, min_size=1, max_size=4)}
)
# Turns in the spelling of the templates.
canonical_calls = st.lists(st.sampled_from(["{}", '{"a": 1}', '{"b": ["x y", null]}']), min_size=1, max_size=2).map(
    lambda arguments: "\n".join(f'<tool_call>\n{{"name": "look", "arguments": {a}}}\n</tool_call>' for a in arguments)
)
canonical_turn = st.fixed_dictionaries(
    {
        "say": st.one_of(plain, canonical_calls),
        "truncate": st.just(False),
        "tools": st.lists(text, max_size=3),
        "user": text,
        "echo": st.just("same"),
    }
)
canonical_conversations = st.fixed_dictionaries(
    {"system": st.one_of(st.none(), text), "user": text, "turns": st.lists(canonical_turn, min_size=1, max_size=4)}
)
_FORMATS: dict[str, ChatFormat] = {}


def chat_format(name: str) -> ChatFormat:
    if name not in _FORMATS:
        special = ("<|endoftext|>", "<|im_start|>", EOS.get(name, "<|im_end|>"))
        _FORMATS[name] = ChatFormat(byte_tokenizer(template(name), special, special[-1]))
    return _FORMATS[name]


class Talk:
    """Plays a conversation with the service directly, without a server."""

    def __init__(self, name: str, policy: Any = "keep") -> None:
        self.format = chat_format(name)
        self.engine = ScriptedEngine(self.format.tokenizer)
        self.store = SessionStore()
        self.service = ChatService(self.store, self.format, self.engine, ProxySettings(history_policy=policy))
        self.session = self.store.start(tools=TOOLS)

    def ask(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        work = self.service.prepare({"messages": messages}, self.session)
        message: dict[str, Any] = asyncio.run(self.service.complete(work))["choices"][0]["message"]
        return message

    def play(self, conversation: dict[str, Any]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if conversation["system"] is not None:
            messages.append({"role": "system", "content": conversation["system"]})
        messages.append({"role": "user", "content": conversation["user"]})
        for at, step in enumerate(conversation["turns"]):
            if at:
                messages += self._follow_up(messages[-1], conversation["turns"][at - 1])
            self.engine.script.append(step["say"])
            self.engine.truncate = step["truncate"]
            messages.append(echo(self.ask(messages), step["echo"]))
        return messages

    @staticmethod
    def _follow_up(reply: dict[str, Any], step: dict[str, Any]) -> list[dict[str, Any]]:
        if reply.get("tool_calls"):
            ids = [call["id"] for call in reply["tool_calls"]]
            results = (step["tools"] + [""] * len(ids))[: len(ids)]
            return [{"role": "tool", "tool_call_id": i, "content": r} for i, r in zip(ids, results, strict=True)]
        return [{"role": "user", "content": step["user"]}]


def echo(message: dict[str, Any], how: str) -> dict[str, Any]:
    """A turn as a client sends it back: unchanged, without reasoning, or in another spelling."""
    if how == "same":
        return message
    out = {key: value for key, value in message.items() if key != "reasoning_content"}
    if how == "respelt":
        out = {**out, "content": out["content"] or None, "refusal": None, "annotations": []}
        if not out.get("tool_calls"):
            out["content"] = out["content"] or ""
    return out


@pytest.mark.parametrize("name", TEMPLATES)
@given(conversation=conversations)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_drift(name: str, conversation: dict[str, Any]) -> None:
    talk = Talk(name)
    talk.play(conversation)
    (row,) = talk.store.export(talk.session.session_id)
    calls_made = talk.engine.calls
    tokens = row.token_ids.tolist()
    assert talk.session.branches == 0 and len(row.turns) == len(calls_made)
    for (prompt, _, _), done, step in zip(calls_made, row.turns, conversation["turns"], strict=True):
        # The prompt is exactly the row before the turn, and the turn is exactly what the engine sampled.
        assert prompt == tokens[: done.start]
        said = talk.format.tokenizer.encode(step["say"], add_special_tokens=False)
        said += [] if step["truncate"] else [talk.format.tokenizer.eos_token_id]
        assert tokens[done.start : done.end] == said
        assert row.loss_mask[done.start : done.end].all()
    assert row.sampled_tokens == sum(done.end - done.start for done in row.turns)


@pytest.mark.parametrize("name", ["tiny", "qwen2_5"])
@given(conversation=canonical_conversations)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_row_is_what_the_template_renders(name: str, conversation: dict[str, Any]) -> None:
    """Independent check: if the template does not rewrite history and turns have its spelling, the text of the row
    equals one rendering of the whole conversation."""
    talk = Talk(name)
    messages = talk.play(conversation)
    (row,) = talk.store.export(talk.session.session_id)
    generation_prompt = "\n<|im_start|>assistant\n"
    whole = (
        talk.format.render_text(messages, TOOLS).removesuffix(generation_prompt).removesuffix("<|im_start|>assistant\n")
    )
    assert talk.format.tokenizer.decode(row.token_ids).rstrip("\n") == whole.rstrip("\n")


# GLM's and Llama's templates refuse to render some whole histories (two calls in one turn).
@pytest.mark.parametrize("name", TEMPLATES[:5])
@given(conversation=conversations, data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_edited_history_branches(name: str, conversation: dict[str, Any], data: st.DataObject) -> None:
    """Negative control: a change of any earlier message makes a branch, and the first row stays the same."""
    talk = Talk(name)
    messages = talk.play(conversation)
    (before,) = talk.store.export(talk.session.session_id)
    at = data.draw(st.integers(0, len(messages) - 1))
    edited = [*messages, {"role": "user", "content": "and now?"}]
    edited[at] = {**edited[at], "content": "EDITED" + (edited[at].get("content") or "")}
    talk.engine.script.append("fine")
    talk.ask(edited)
    rows = talk.store.export(talk.session.session_id)
    assert talk.session.branches == 1 and len(rows) == 2
    assert rows[1].token_ids.tolist() == before.token_ids.tolist()
    # Shared turns are trained once, in the newer row.
    sampled = sum(row.sampled_tokens for row in rows)
    assert sampled == talk.session.sampled_tokens


def test_the_branch_policy_follows_templates_that_rewrite_history() -> None:
    said = "<think>\nsecret plan\n</think>\n\nHello."
    for policy, branches in (("keep", 0), ("branch", 1)):
        talk = Talk("qwen3", policy)
        talk.engine.script.extend([said, "Bye."])
        first = [{"role": "user", "content": "hi"}]
        reply = talk.ask(first)
        talk.ask([*first, reply, {"role": "user", "content": "bye"}])
        assert talk.session.branches == branches
        second_prompt = talk.format.tokenizer.decode(talk.engine.calls[1][0])
        assert ("secret plan" in second_prompt) == (policy == "keep")
    # If a tool result follows, Qwen3 keeps the reasoning, so there is no branch with either policy.
    talk = Talk("qwen3", "branch")
    talk.engine.script.extend(
        ['<think>\nplan\n</think>\n\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>', "x"]
    )
    reply = talk.ask([{"role": "user", "content": "hi"}])
    talk.ask([{"role": "user", "content": "hi"}, reply, {"role": "tool", "content": "r"}])
    assert talk.session.branches == 0
