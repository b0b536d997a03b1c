"""The probe of chat templates: what is lost, what is changed, which parser reads the calls, and what is rewritten."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tau2_lightning.policy.chat_templates import template_source
from tau2_lightning.rollout.chat.form import OPENER, MessageForm, short_id
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.probe import TemplateReport, examine, reads_own_calls
from tests.rollout.chat import behaviours as b
from tests.rollout.proxy.fixtures import SPECIAL, byte_tokenizer, template
from tests.rollout.proxy.rig import ALL_MARKS


def form_of(source: str, parser: str | None = None) -> ChatFormat:
    return ChatFormat(byte_tokenizer(source, (*SPECIAL, *ALL_MARKS)), parser)


def report_of(source: str) -> TemplateReport:
    return examine(form_of(source))


@pytest.mark.parametrize("name", ["hermes", "qwen3"])
def test_our_templates_lose_change_and_rewrite_nothing(name: str) -> None:
    found = report_of(template_source(name))
    assert (found.lost, found.form, found.rewrites) == ((), MessageForm(), ())
    assert found.choice.name == "hermes" and found.choice.parallel


@pytest.mark.parametrize(
    ("source", "lost"),
    [
        (b.NO_TOOLS, "tools (name, description, arguments, descriptions of arguments)"),
        (b.NO_ARGUMENTS, "tools (arguments, descriptions of arguments)"),
        (b.NO_SYSTEM, "the system text (the chat template does not accept these messages: refused)"),
        (b.NO_RESULTS, "results of calls"),
    ],
)
def test_what_does_not_reach_the_prompt_is_named(source: str, lost: str) -> None:
    assert report_of(source).lost[0] == lost
    assert not report_of(b.PLAIN).lost


@pytest.mark.parametrize(
    ("source", "form", "parser"),
    [
        (b.PLAIN, MessageForm(), "hermes"),
        (b.NINE, MessageForm(short_ids=True), "hermes"),
        (b.MISTRAL, MessageForm(short_ids=True), "mistral"),
        (b.NAMED_RESULTS, MessageForm(names=True), "hermes"),
        (b.NEEDS_NAMES, MessageForm(names=True), "hermes"),
        (b.TEXT_ARGUMENTS, MessageForm(text_arguments=True), "hermes"),
        (b.NEEDS_USER, MessageForm("missing"), "hermes"),
        (b.USER_FIRST, MessageForm("first"), "hermes"),
        (b.TOOLS_WITH_FIRST, MessageForm("first"), "llama3_json"),
    ],
)
def test_form_and_parser_of_a_template_are_found(source: str, form: MessageForm, parser: str) -> None:
    started = time.process_time()  # the machine may be busy
    found = report_of(source)
    assert time.process_time() - started < 2
    assert (found.lost, found.form, found.choice.name) == ((), form, parser)
    assert bool(found.changes()) == (form != MessageForm())
    assert form_of(source, "auto").tool_parser.openings == form_of(source, parser).tool_parser.openings
    assert reads_own_calls(form_of(source, parser))
    assert not reads_own_calls(form_of(source, "pythonic"))


def test_without_a_parser_for_its_calls_a_template_has_none() -> None:
    assert report_of(b.UNREADABLE).choice.name is None
    with pytest.raises(ValueError, match="no tool-call parser reads"):
        form_of(b.UNREADABLE, "auto")


def test_what_is_rewritten() -> None:
    assert report_of(b.FORGETFUL).rewrites == ("reasoning before a user's message",)
    assert report_of(b.PLAIN).rewrites == ()
    assert report_of(template("qwen3")).rewrites[-1] == "reasoning before a user's message"


def test_one_call_a_turn_is_known_and_several_sampled_ones_go_on() -> None:
    form = form_of(b.TOOLS_WITH_FIRST, "auto")
    assert not examine(form).choice.parallel
    calls = [{"id": i, "type": "function", "function": {"name": "look", "arguments": "{}"}} for i in "ab"]
    reply = {"role": "assistant", "content": "", "tool_calls": calls}
    results = [{"role": "tool", "tool_call_id": i, "content": f"seen {i}"} for i in "ab"]
    delta = form.decode(form.render_delta(reply, results, ended=True))
    assert "seen a" in delta and "seen b" in delta
    assert not form.rewrites_history([{"role": "user", "content": "x"}], reply, results, None)


SYSTEM = {"role": "system", "content": "Rules.\n<ticket>\nNo signal.\n</ticket>"}
TICKET = {"role": "user", "content": "<ticket>\nNo signal.\n</ticket>"}
GREETING: dict[str, Any] = {"role": "assistant", "content": "Hi!"}
USER: dict[str, Any] = {"role": "user", "content": "help"}


@pytest.mark.parametrize("placement", ["missing", "first"])
def test_the_ticket_becomes_the_users_turn_and_stays_it(placement: Any) -> None:
    form = MessageForm(placement)
    opening = form.applied([SYSTEM])
    assert opening == [{"role": "system", "content": "Rules."}, TICKET]
    assert form.applied([SYSTEM, {**GREETING, "content": "so"}])[:2] == opening
    assert form.applied([USER, GREETING]) == [USER, GREETING]


def test_a_greeting_gets_an_opener_only_where_the_user_must_be_first() -> None:
    plain = {"role": "system", "content": "Rules."}
    talk = [plain, GREETING, USER]
    assert MessageForm("missing").applied(talk) == talk
    assert MessageForm("first").applied(talk) == [plain, {"role": "user", "content": OPENER}, GREETING, USER]
    assert MessageForm("first").applied([GREETING, USER])[0] == {"role": "user", "content": OPENER}


def test_short_ids_depend_on_the_id_alone() -> None:
    assert short_id("abc123XYZ") == "abc123XYZ"
    one, other = short_id("call_1"), short_id("call_2")
    assert one != other and one == short_id("call_1") and len(one) == 9 and one.isalnum()
    ids = {short_id(f"call_{number}") for number in range(2000)}
    assert len(ids) == 2000


def test_the_template_for_tools_is_taken_of_several() -> None:
    tokenizer = byte_tokenizer(b.NO_TOOLS, (*SPECIAL, *ALL_MARKS))
    tokenizer.chat_template = {"default": b.NO_TOOLS, "tool_use": b.PLAIN}
    assert not examine(ChatFormat(tokenizer, None)).lost
