"""Messages of an episode: what the policy saw, and what else tau2 recorded."""

from __future__ import annotations

from typing import Any

from tau2_lightning.rollout_files.dialogue import merged

SYSTEM = {"role": "system", "content": "policy"}
GREETING = {"role": "assistant", "content": "Hi! How can I help you today?"}
HELLO = {"role": "user", "content": "My line is dead."}


def call(name: str, number: str = "c1") -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": '{"id": "L1"}'}}


def world_call(name: str) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "name": name, "arguments": {"id": "L1"}}]}


def test_without_tau2_the_messages_of_the_session_are_given() -> None:
    seen: list[dict[str, Any]] = [
        SYSTEM,
        HELLO,
        {"role": "assistant", "content": "", "tool_calls": [call("check")], "reasoning_content": "hm"},
    ]
    found = merged(seen, {2: 0})
    assert [one["role"] for one in found] == ["system", "user", "assistant"]
    assert found[2]["turn"] == 0 and found[2]["thought"] == "hm"
    assert found[2]["calls"] == [{"id": "c1", "name": "check", "arguments": {"id": "L1"}}]


def test_replies_are_found_among_the_messages_of_tau2() -> None:
    seen: list[dict[str, Any]] = [
        SYSTEM, GREETING, HELLO, {"role": "assistant", "content": None, "tool_calls": [call("check")]},
        {"role": "tool", "content": "active", "tool_call_id": "c1"}, {"role": "assistant", "content": "It is active. "},
    ]  # fmt: skip
    own = {"id": "u1", "name": "toggle", "arguments": {}, "requestor": "user"}
    world = [
        GREETING, HELLO, world_call("check"),
        {"role": "tool", "content": "active", "id": "c1", "requestor": "assistant"},
        {"role": "assistant", "content": "It is active."},
        {"role": "user", "content": None, "tool_calls": [own]},
        {"role": "tool", "content": "done", "id": "u1", "requestor": "user", "error": True},
        {"role": "user", "content": "bye", "raw_data": {"user_faults": [{"kind": "stops_early", "evidence": "bye"}]}},
    ]  # fmt: skip
    found = merged(seen, {3: 0, 5: 1}, world)
    assert [one.get("turn") for one in found] == [None, None, None, 0, None, 1, None, None, None]
    assert found[1]["content"] == GREETING["content"], "the greeting was not sampled"
    assert found[7]["by"] == "user" and found[7]["error"]
    assert found[8]["faults"] == [{"kind": "stops_early", "evidence": "bye"}]


def test_thoughts_that_tau2_never_got_are_put_in() -> None:
    think = {"role": "assistant", "content": None, "tool_calls": [call("think")]}
    seen: list[dict[str, Any]] = [
        SYSTEM,
        HELLO,
        think,
        {"role": "tool", "content": "", "tool_call_id": "c1"},
        {"role": "assistant", "content": "ok"},
    ]
    found = merged(seen, {2: 0, 4: 1}, [HELLO, {"role": "assistant", "content": "ok"}])
    assert [(one["role"], one.get("turn")) for one in found] == [
        ("system", None), ("user", None), ("assistant", 0), ("assistant", 1),
    ]  # fmt: skip


def test_a_reply_that_does_not_fit_is_not_lost() -> None:
    seen: list[dict[str, Any]] = [SYSTEM, HELLO, {"role": "assistant", "content": "cut off"}]
    found = merged(seen, {2: 0}, [HELLO])
    assert found[-1]["content"] == "cut off" and found[-1]["turn"] == 0


def test_times_count_from_the_beginning_of_the_episode() -> None:
    from datetime import datetime

    at = datetime(2026, 1, 2, 3, 4, 5, 500_000)
    world = [{**HELLO, "timestamp": at.isoformat()}, {**HELLO, "timestamp": "no time"}]
    found = merged([], {}, world, at.timestamp() - 2)
    assert found[0]["at"] == 2.0 and "at" not in found[1]
