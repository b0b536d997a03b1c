"""A17: answers to one prompt that begin with the same tokens are different samples; all tokens of each are trained."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.algorithm import DrGRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.rollout.engine.generation import Generation
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionStore
from tau2_lightning.rollout.session.tree import Node, Session
from tau2_lightning.segments import Segment
from tau2_lightning.trajectory import Group, Rollout, Trajectory, Turn, trained_masks
from tests.batch.groups import trajectory
from tests.rollout.proxy.rig import Rig

USER = [{"role": "user", "content": "x"}]
SHARED = [11, 12, 13, 14, 15]


def answered(session: Session, tokens: list[int], number: int, parent: Node | None = None) -> Node:
    generation = Generation(tuple(tokens), (-0.5,) * len(tokens), (3,) * len(tokens), "stop")
    node = Node(parent, USER, {"role": "assistant", "content": str(tokens)}, [1, 2], generation, f"c{number}")
    session.add(node)
    return node


def trained(rows: tuple[Trajectory, ...]) -> list[int]:
    """Trained tokens of each row of the batch. A second episode with another reward gives the group a signal."""
    rollouts = (Rollout("t", "g", 0, 1.0, rows), Rollout("t", "g", 1, 0.0, (trajectory([1, 9], [(1, 2)]),)))
    batch = Batch.from_groups([Group("g", "t", rollouts)], DrGRPO(), version=3)
    return [int(row.loss_mask.sum()) for row in batch.rows if row.episode == 0]


def test_two_rewarded_siblings_that_share_five_tokens_train_six_and_six() -> None:
    store = SessionStore()
    session = store.start()
    for number, last in enumerate((16, 17)):
        answered(session, [*SHARED, last], number)
        store.set_reward(session.session_id, 0.5, turn=f"c{number}")
    rows = store.export(session.session_id)
    assert trained(rows) == [6, 6]
    _, left_out = trained_masks(rows)
    assert left_out["duplicate_tokens"] == 0


async def test_two_rewarded_choices_of_one_request_are_both_trained_whole() -> None:
    """The same test, from a client's request to the batch."""
    async with Rig(ProxySettings()) as rig:
        session = rig.store.start()
        rig.engine.script.extend([[*SHARED, 16], [*SHARED, 17]])
        answer = (await rig.post(session.api_key, {"messages": USER, "n": 2})).json()
        assert len(answer["choices"]) == 2
        for node, reward in zip(session.nodes, (1.0, 0.0), strict=True):
            rig.store.set_reward(session.session_id, reward, turn=node.completion_id)
        assert trained(rig.store.export(session.session_id)) == [6, 6]


def test_equal_siblings_of_a_session_are_two_samples() -> None:
    store = SessionStore()
    session = store.start()
    for number in range(2):
        answered(session, [*SHARED, 16], number)
        store.set_reward(session.session_id, 0.5, turn=f"c{number}")
    assert trained(store.export(session.session_id)) == [6, 6]


def flat(tokens: list[int], spans: list[tuple[int, int]], logprobs: float = -0.5, version: int = 3) -> Trajectory:
    """A row of one segment, without the identity of its turns."""
    values = np.full(len(tokens), logprobs, np.float32)
    turns = tuple(Turn(*span) for span in spans)
    return Trajectory.of(tokens, values, np.full(len(tokens), version, np.int32), turns)


def test_rows_without_identity_lose_only_turns_that_are_copies_bit_for_bit() -> None:
    main = flat([1, 2, *SHARED, 16, 1], [(2, 8)])
    copy = flat([1, 2, *SHARED, 16, 1, 7, 8], [(2, 8), (9, 11)])
    sibling = flat([1, 2, *SHARED, 17], [(2, 8)])
    other_weights = flat([1, 2, *SHARED, 16], [(2, 8)], version=4)
    other_logprobs = flat([1, 2, *SHARED, 16], [(2, 8)], logprobs=-0.5000001)
    other_prompt = flat([1, 3, *SHARED, 16], [(2, 8)])
    masks, left_out = trained_masks([main, copy, sibling, other_weights, other_logprobs, other_prompt])
    assert [int(mask.sum()) for mask in masks] == [6, 2, 6, 6, 6, 6]
    assert left_out["duplicate_tokens"] == 6


def test_only_what_the_earlier_row_really_trains_is_left_out() -> None:
    altered = dataclasses.replace(flat([1, 2, 3, 4], [(2, 4)]), turns=(Turn(2, 4, altered="json"),))
    copy = flat([1, 2, 3, 4], [(2, 4)])
    masks, left_out = trained_masks([altered, copy, copy])
    assert [int(mask.sum()) for mask in masks] == [0, 2, 0] and left_out["duplicate_tokens"] == 2


plays = st.lists(
    st.tuples(st.integers(-1, 5), st.lists(st.integers(11, 12), min_size=1, max_size=4)), min_size=1, max_size=6
)


@settings(max_examples=200, deadline=None)
@given(plays)
def test_every_sampled_turn_of_a_session_is_trained_exactly_once_however_alike_turns_are(turns) -> None:
    """With only two token ids, one version and one log-prob, nearly every turn equals another."""
    store = SessionStore()
    session = store.start()
    for number, (parent, tokens) in enumerate(turns):
        above = session.nodes[parent % number] if number and parent >= 0 else None
        answered(session, tokens, number, above)
        store.set_reward(session.session_id, 1.0, turn=f"c{number}")  # an answer with a reward is not superseded
    rows = store.export(session.session_id)
    masks, left_out = trained_masks(rows)
    assert left_out["duplicate_tokens"] == 0
    assert sum(int(mask.sum()) for mask in masks) == sum(len(tokens) for _, tokens in turns)
    owned: set[Segment] = set()
    for row in rows:
        segments = {segment for turn in row.turns if (segment := row.segment_of(turn)) is not None}
        assert len(segments) == len(row.turns) and not segments & owned
        owned |= segments
    flattened = [
        Trajectory.of(row.token_ids, row.logprobs, row.versions, row.turns, row.branch) for row in (*rows, *rows)
    ]
    again, _ = trained_masks(flattened)  # the same rows twice, without identity: the second copies train nothing
    assert not any(mask.any() for mask in again[len(rows) :])
