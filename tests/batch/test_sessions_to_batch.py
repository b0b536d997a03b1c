"""From sessions with branches to a batch: rows, trained tokens and the forest, against plain lists."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.algorithm import GRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.rollout.engine.generation import Generation
from tau2_lightning.rollout.session.store import SessionStore
from tau2_lightning.rollout.session.tree import Node, Session
from tau2_lightning.trajectory import Group, Rollout

# A turn: its parent among the earlier turns (taken modulo; negative starts anew), prompt, sampled tokens, altered.
turn = st.tuples(
    st.integers(-1, 6),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.lists(st.integers(0, 2), max_size=4),
    st.sampled_from([None, None, None, "json"]),
)
plays = st.lists(st.lists(turn, min_size=1, max_size=7), min_size=2, max_size=4)


def played(store: SessionStore, turns: list[Any]) -> tuple[Session, dict[int, tuple[list[int], list[int]]]]:
    """A session, and for the ``id`` of each node the flat tokens up to its end, with the turn that sampled each (-1 in
    prompts)."""
    session = store.start()
    flat: dict[int, tuple[list[int], list[int]]] = {}
    for number, (parent, prompt, sampled, altered) in enumerate(turns):
        above = session.nodes[parent % number] if number and parent >= 0 else None
        generation = Generation(tuple(sampled), (-0.5,) * len(sampled), (number,) * len(sampled), "stop")
        question = [{"role": "user", "content": str(number)}]  # each is different, so that no turn supersedes another
        node = Node(above, question, {"role": "assistant", "content": "a"}, prompt, generation, str(number))
        node.altered = altered
        session.add(node)
        tokens, owners = flat[id(above)] if above is not None else ([], [])
        owned = [number] * len(sampled)
        flat[id(node)] = [*tokens, *prompt, *sampled], [*owners, *[-1] * len(prompt), *owned]
    return session, flat


@settings(max_examples=150, deadline=None)
@given(sessions=plays)
def test_a_batch_flattens_to_the_sessions_rows_and_trains_each_sampled_token_once(sessions) -> None:
    store = SessionStore()
    rollouts, rows, segments = [], [], set()
    for sample, turns in enumerate(sessions):
        session, flat = played(store, turns)
        found = store.export(session.session_id)
        leaves = list(session.leaves())
        assert [row.token_ids.tolist() for row in found] == [flat[id(leaf)][0] for leaf in leaves]
        seen: set[int] = set()
        for row, leaf in zip(found, leaves, strict=True):
            tokens, owners = flat[id(leaf)]
            mine = {owner for owner in owners if owner >= 0} - seen
            trained = [owner in mine and session.nodes[owner].altered is None for owner in owners]
            assert row.loss_mask.tolist() == trained
            assert row.versions[row.loss_mask].tolist() == [owner for owner in owners if owner in mine and
                                                            session.nodes[owner].altered is None]  # fmt: skip
            assert row.sampled_tokens == sum(owner in mine for owner in owners)
            seen |= mine
            segments |= set(row.leaf.path())
            rows.append(tokens)
        rollouts.append(Rollout("t", "g", sample, float(sample % 2), found))
    batch = Batch.from_groups([Group("g", "t", tuple(rollouts))], GRPO(), version=9)
    assert [batch.tokens(row).tolist() for row in batch.rows] == [rows[row.row_id] for row in batch.rows]
    kept = [rows[row.row_id] for row in batch.rows]
    prefixes = {tuple(tokens[:n]) for tokens in kept for n in range(1, len(tokens) + 1)}
    assert sum(len(segment.token_ids) for segment in batch.segments) == len(prefixes)
    for segment in batch.segments:  # the session's own tokens, whole or as a view
        assert segment in segments or any(np.shares_memory(segment.token_ids, own.token_ids) for own in segments)
    again = Batch.from_bytes(batch.to_bytes())
    assert [again.tokens(row).tolist() for row in again.rows] == kept
