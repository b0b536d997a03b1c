"""What counts as told or read: each rule, and that nothing else does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tau2_lightning.environment.experts.seen import Seen, unfounded

TOOLS = [{"function": {"parameters": {"properties": {"cabin": {"enum": ["business", "economy"]}}}}}]
POLICY = "The current time is 2024-05-15 15:00:00 EST. Reasons: 'no longer needed'. A bag costs 50 dollars."
TOLD = "I am mei_li_8020 in New York, my zip is 19122. I fly on May 20th, #W123, and paid 1,286.50 with card_77."


@pytest.fixture
def seen() -> Seen:
    seen = Seen(POLICY, TOOLS)
    seen.add(TOLD)
    return seen


@pytest.mark.parametrize(
    "value",
    [
        *("Mei", "mei_li_8020", "#W123", "card_77", "19122", 1286.5, "1286.50", 50.0, "", None, "Business", "NY"),
        *("2024-05-20", "2024-05-21", "2024-05-19", "2024-05-15", "no longer needed", 0, 9, True),
    ],
)
def test_what_was_told_read_or_follows_by_a_rule(seen: Seen, value: Any) -> None:
    assert seen.has(value)


@pytest.mark.parametrize(
    "value",
    [
        *("Me", "li_80", "#W12", "W1234", "card_7", "1912", 1286.0, 10, 1.5, "first", "TX", "2024-05-22", "2023-05-20"),
        *("2024-13-45", "ordered by mistake", "Mai"),
    ],
)
def test_what_nobody_mentioned(seen: Seen, value: Any) -> None:
    assert not seen.has(value)


def test_arguments_are_searched_to_their_leaves(seen: Seen) -> None:
    arguments = {"passengers": [{"first_name": "Mei", "dob": "1990-01-01"}], "cabin": "economy", "zip": "10001"}
    assert seen.missing(arguments) == ["passengers.dob='1990-01-01'", "zip='10001'"]


def test_a_sum_needs_its_numbers_and_a_summary_its_digits(seen: Seen) -> None:
    assert not seen.missing({"expression": "2 * (50 + 1286.5)", "summary": "Wants a refund for #W123 (card_77)."})
    assert seen.missing({"expression": "50 + 51"}) and seen.missing({"summary": "Wants order #W124."})


def call(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": function}]}


def test_only_what_came_before_the_call_counts() -> None:
    early, late = call("get", id="#W123"), {"role": "user", "content": TOLD}
    assert unfounded([late, early], TOOLS, POLICY) == []
    assert unfounded([early, late], TOOLS, POLICY) == ["get.id='#W123'"]


def test_the_agents_own_words_and_the_system_prompt_are_no_source() -> None:
    own = {"role": "assistant", "content": "Your order is #W123."}
    assert unfounded([{**own, "role": "system"}, own, call("get", id="#W123")], TOOLS, POLICY) == ["get.id='#W123'"]


def test_requests_to_the_user_are_checked_like_calls() -> None:
    asked = {"role": "assistant", "content": 'Please run set_mode({"mode": "5g"}) and look({}).'}
    assert unfounded([asked], TOOLS, POLICY) == ["set_mode.mode='5g'"]
    assert unfounded([{"role": "tool", "content": "modes: 5g"}, asked], TOOLS, POLICY) == []
