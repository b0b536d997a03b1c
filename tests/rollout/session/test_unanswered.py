"""The rules by which a request of a session counts as answered."""

from __future__ import annotations

from typing import Any

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.engine.generation import Generation
from tau2_lightning.rollout.session.requests import Request
from tau2_lightning.rollout.session.store import SessionStore
from tau2_lightning.rollout.session.tree import Node, Session
from tau2_lightning.rollout.session.unanswered import unanswered

ENGINE, LEFT = InfrastructureFault("engine", "crash"), InfrastructureFault("session", "client_left")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def add(session: Session, parent: Node | None, new: list[Any], reply: str) -> Node:
    node = Node(parent, new, said(reply), [1], Generation((2,), (-0.5,), (0,), "stop"), f"chatcmpl-{session.turns}")
    session.add(node)
    return node


def dialogue() -> tuple[SessionStore, Session]:
    """A session of two turns, and a branch after the first."""
    store = SessionStore()
    session = store.start()
    first = add(session, None, [user("a")], "b")
    add(session, first, [user("c")], "d")
    add(session, first, [user("e"), user("f")], "g")
    return store, session


def test_a_turn_anywhere_in_the_tree_answers_a_request_for_the_same_messages() -> None:
    _, session = dialogue()
    for messages in (
        [user("a")],
        [user("a"), said("b"), user("c")],
        [user("a"), said(" b "), user("e"), {**user("f"), "extra": None}],  # in another spelling
    ):
        session.requests = [Request(0, messages, ENGINE)]
        assert not list(unanswered(session)), messages


def test_other_messages_are_no_answer() -> None:
    _, session = dialogue()
    for messages in (
        [user("x")],
        [user("a"), user("a")],
        [user("a"), said("b")],
        [user("a"), said("b"), user("e")],
        [user("a"), said("x"), user("c")],
        [user("a"), said("b"), user("c"), said("d"), user("h")],
    ):
        session.requests = [request := Request(0, messages, ENGINE)]
        assert list(unanswered(session)) == [request], messages


def test_a_request_that_nobody_read_is_answered_by_any_later_turn() -> None:
    _, session = dialogue()
    session.requests = [Request(2, None, ENGINE), late := Request(3, None, ENGINE)]
    assert list(unanswered(session)) == [late]


def test_what_failed_comes_before_what_the_client_gave_up_for_it() -> None:
    store, session = dialogue()
    session.requests = [Request(0, [user("x")], ENGINE), Request(0, [user("y")], LEFT), Request(0, [user("z")])]
    fault = store.fault(session.session_id)
    assert fault is ENGINE and store.fault(session.session_id, raised=True) is ENGINE
    session.requests = session.requests[1:]
    left = store.fault(session.session_id)
    assert left is not None and left.name == "session:client_left"
    assert store.fault(session.session_id, raised=True) is None


def test_a_session_without_a_turn_and_one_that_is_gone() -> None:
    store = SessionStore()
    session = store.start()
    empty = store.fault(session.session_id)
    assert empty is not None and empty.name == "session:no_turn"
    assert store.fault(session.session_id, raised=True) is None
    store.abort(session.session_id)
    gone = store.fault(session.session_id)
    assert gone is not None and gone.name == "session:gone"


def test_failures_of_one_question_are_noted_once() -> None:
    store, session = dialogue()
    for _ in range(3):
        request = store.begin_call(session)
        request.messages, request.fault = [user("x")], ENGINE
        store.end_call(session, request)
        store.refused(session.api_key, ENGINE)
    answered = store.begin_call(session)
    store.end_call(session, answered)
    assert [request.messages for request in session.requests] == [[user("x")], None]
    store.refused("tl-of-nobody", ENGINE)  # a key without a session is ignored
