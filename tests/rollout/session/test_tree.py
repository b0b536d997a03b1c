"""The session tree: matching, branches, rewards and rows."""

from __future__ import annotations

import numpy as np
import pytest

from tau2_lightning.batch.forest import merge
from tau2_lightning.errors import SessionError
from tau2_lightning.rollout.chat.message import Message
from tau2_lightning.rollout.engine.generation import Generation
from tau2_lightning.rollout.session.matching import same
from tau2_lightning.rollout.session.store import SessionSettings, SessionStore
from tau2_lightning.rollout.session.tree import Node, Session
from tau2_lightning.segments import Segment


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def add(session: Session, parent: Node | None, new: list[Message], reply: str, *, prompt: int = 3, version: int = 0,
        invalid: bool = False) -> Node:  # fmt: skip
    tokens = tuple(100 + ord(char) for char in reply)
    generation = Generation(tokens, (-0.25,) * len(tokens), (version,) * len(tokens), "stop")
    node = Node(parent, new, said(reply), list(range(prompt)), generation, f"id-{reply}", b"", invalid)
    session.add(node)
    return node


def test_spellings_of_one_message() -> None:
    def call(arguments: str, **more: object) -> Message:
        function = {"name": "f", "arguments": arguments}
        return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}], **more}

    assert same(call('{"a":1}'), call('{ "a": 1 }', content="", refusal=None))
    assert same(said("x "), {"role": "assistant", "content": "x", "reasoning_content": "dropped"})
    assert same(user("a\nb"), {"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]})
    assert not same(call('{"a":1}'), call('{"a":2}'))
    assert not same(user("x"), user("x ")) and not same(user("x"), {**user("x"), "role": "system"})


def test_the_deepest_newest_match_is_continued() -> None:
    session = SessionStore().start()
    first = add(session, None, [user("q")], "a")
    second = add(session, first, [user("r")], "b")
    history = [user("q"), said("a"), user("r"), said("b"), user("s")]
    assert session.match(history, b"") == (second, 4)
    assert session.match(history[:3], b"") == (first, 2)
    again = add(session, None, [user("q")], "a")
    assert session.match(history[:3], b"") == (again, 2), "of two equal nodes the newest must match"
    assert session.match(history, b"") == (second, 4), "a deeper node must come before a newer one"
    assert session.match([user("other")], b"") == (None, 0)
    assert session.match(history, b"other tools") == (None, 0)
    assert session.tokens(second) == [0, 1, 2, 197, 0, 1, 2, 198]


def test_shared_turns_are_trained_once_and_discounted_along_each_row() -> None:
    store = SessionStore(SessionSettings(invalid_format_penalty=0.5, turn_discount=0.5))
    session = store.start()
    first = add(session, None, [user("q")], "aa", version=1)
    add(session, first, [user("old")], "bbb", version=1, invalid=True)
    add(session, first, [user("new")], "cccc", version=2)
    store.set_reward(session.session_id, 1.0)
    store.set_reward(session.session_id, 0.25, turn="id-aa")
    main, branch = store.export(session.session_id)
    assert session.branches == 1 and (main.branch, branch.branch) == (0, 1)
    assert main.versions.tolist() == [-1] * 3 + [1, 1] + [-1] * 3 + [2] * 4
    assert main.loss_mask.tolist() == [False] * 3 + [True] * 2 + [False] * 3 + [True] * 4
    assert branch.loss_mask.tolist() == [False] * 8 + [True] * 3  # "aa" belongs to the main row
    assert [t.reward for t in main.turns] == [0.25, 1.0], "rewards must be raw: the trainer shapes them"
    assert [(t.reward, t.invalid_format) for t in branch.turns] == [(1.0, True)]
    assert float(main.logprobs.sum()) == -0.25 * 6
    outside = store.export_json(session.session_id)
    shaped = [[(t["reward"], t["discounted_return"], t["invalid_format"]) for t in row["turns"]] for row in outside]
    assert shaped == [[(0.25, 0.75, False), (1.0, 1.0, False)], [(0.5, 0.5, True)]]
    assert [row["loss_mask"].tolist() for row in outside] == [main.loss_mask.tolist(), branch.loss_mask.tolist()]


def test_rows_of_a_session_share_the_segments_before_they_part() -> None:
    store = SessionStore()
    session = store.start()
    first = add(session, None, [user("q")], "aa")
    add(session, first, [user("old")], "bbb")
    add(session, first, [user("new")], "cccc")
    main, branch = store.export(session.session_id)
    assert main.leaf.path()[:2] == branch.leaf.path()[:2] == [first.appended, first.sampled], (
        "both rows must use the same segment objects"
    )
    leaves = merge([main.leaf, Segment.of([999]), branch.leaf])
    assert leaves[0] is main.leaf, "the first leaf must stay the same object"
    # Both prompts begin with 0, 1, 2, so the branch point moves after them; tokens stay views of the session's.
    assert leaves[2].flat().tolist() == branch.token_ids.tolist()
    for segment in leaves[2].path():
        assert any(np.shares_memory(segment.token_ids, s.token_ids) for s in (*main.leaf.path(), *branch.leaf.path()))


def test_a_retry_supersedes_the_answer_nobody_used() -> None:
    store = SessionStore()
    session = store.start()
    add(session, None, [user("q")], "lost")
    add(session, None, [user("q")], "kept")
    (row,) = store.export(session.session_id)
    assert session.branches == 0 and row.token_ids.tolist()[3:] == [100 + ord(c) for c in "kept"]


def test_keys_and_states() -> None:
    store = SessionStore(SessionSettings(max_sessions=2, max_turns=1))
    one, two = store.start(), store.start()
    with pytest.raises(SessionError, match="limit"):
        store.start()
    assert store.authenticate(one.api_key) is one
    crossed = one.api_key.replace(one.session_id, two.session_id)
    for key in (crossed, one.api_key + "x", one.api_key[3:], "", "tl-", "é\udcff", one.session_id):
        assert store.authenticate(key) is None
    add(one, None, [user("q")], "a")
    with pytest.raises(SessionError, match="1 turns"):
        store.begin_call(one)
    with pytest.raises(SessionError) as missing:
        store.set_reward(one.session_id, 1.0, turn=7)
    assert missing.value.code == "turn_not_found"
    store.close(two.session_id)
    with pytest.raises(SessionError, match="closed"):
        store.set_reward(two.session_id, 1.0)
    store.abort(one.session_id)
    store.abort(one.session_id)
    assert len(store) == 1 and store.counters["aborted"] == 1
    assert one.api_key not in repr(one)
