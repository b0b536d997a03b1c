"""Attempts that ended with a fault are kept, with what their sessions held."""

from __future__ import annotations

import pytest

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.episode.runner import EpisodeRunner
from tau2_lightning.rollout.session.store import SessionStore
from tests.rollout.episode.test_runner import ACCESS, REQUEST, Workflow, take_a_turn


class Breaking(Workflow):
    """Takes a turn before it raises."""

    async def run(self, data, *, api_key, **kwargs):
        take_a_turn(self.store, api_key)
        raise self.results.pop(0)


async def test_each_failed_attempt_is_kept_with_its_turns() -> None:
    store = SessionStore()
    faults = [InfrastructureFault("user", "timeout", "no answer"), InfrastructureFault("user", "bad", "x", again=False)]
    runner = EpisodeRunner(Breaking(store, *faults), store, ACCESS, timeout=5.0, retries=2)
    with pytest.raises(InfrastructureFault, match="bad"):
        await runner.run(REQUEST)
    first, last = runner.failed
    assert (first.cause, first.attempt, first.final) == ("user:timeout", 0, False)
    assert (last.cause, last.attempt, last.final) == ("user:bad", 1, True)
    assert (last.task_id, last.group_id, last.sample) == ("t1", "7", 2) and "x" in last.message
    (row,) = last.trajectories
    assert [message["content"] for message in row.messages] == ["x", "y"] and row.turns[0].message == 1
    assert len(store) == 0


async def test_nothing_is_kept_where_nobody_wants_it() -> None:
    store = SessionStore()
    fault = InfrastructureFault("user", "bad", "x", again=False)
    runner = EpisodeRunner(Breaking(store, fault), store, ACCESS, timeout=5.0, retries=2, keep_failed=False)
    with pytest.raises(InfrastructureFault):
        await runner.run(REQUEST)
    assert not runner.failed
    assert runner.faults == {"user:bad": 1}
