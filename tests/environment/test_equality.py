"""Fast episodes equal stock ones: the same messages, database hashes, rewards and reward breakdowns.

By default a few dozen random episodes a domain; ``EQUALITY_EPISODES=2000`` runs the full claim.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.stock_tau2 import Move, play_stock
from tau2_lightning.environment import Dialogue, EnvironmentSettings, TaskRef, load_tasks
from tau2_lightning.environment.blueprints import blueprint
from tau2_lightning.environment.copy_on_write import CowDict
from tau2_lightning.environment.demonstrations import _at_once
from tau2_lightning.environment.scoring import tau2_can_score
from tau2_lightning.environment.tasks import get_task
from tau2_lightning.errors import InfrastructureFault
from tests.environment.helpers import scripted, solo
from tests.environment.random_moves import random_moves

MODES = {
    "telecom-solo": solo("telecom"),
    "telecom-dual": scripted("telecom"),
    "retail": scripted("retail"),
    "airline": scripted("airline"),
    "mock-solo": solo("mock"),
    "mock-dual": scripted("mock"),
}
DEFAULT = {"retail": 6, "airline": 3}
IGNORED = {"timestamp", "turn_idx", "raw_data", "usage", "cost"}


def comparable(simulation: dict[str, Any]) -> dict[str, Any]:
    """What must agree: all but clocks and random ids."""
    messages = [{k: v for k, v in m.items() if k not in IGNORED} for m in simulation["messages"]]
    return {"messages": messages, "termination_reason": simulation["termination_reason"]}


class _Counting:
    """Stands for the uuid module in telecom's tools: its bill ids are random, even between tau2's own replays."""

    def __init__(self) -> None:
        self.count = 0

    def uuid4(self) -> Any:
        self.count += 1
        return mock.Mock(hex=f"{self.count:032x}"[::-1])


@contextmanager
def numbered_bills() -> Iterator[None]:
    import tau2.domains.telecom.environment as environment
    import tau2.domains.telecom.tools as tools

    def restart(self: Any, *args: Any, **kwargs: Any) -> Any:
        tools.uuid.count = 0  # every replay counts its bills from one
        return stock(self, *args, **kwargs)

    stock = environment.TelecomEnvironment.set_state
    with (
        mock.patch.object(tools, "uuid", _Counting()),
        mock.patch.object(environment.TelecomEnvironment, "set_state", restart),
    ):
        yield


def fast(settings: EnvironmentSettings, task: TaskRef, moves: list[Move]) -> Dialogue:
    async def run(dialogue: Dialogue) -> None:
        await dialogue.start()
        for move in moves:
            if dialogue.done:
                return
            await dialogue.reply(move.openai())

    dialogue = Dialogue(task, settings, seed=1)
    _at_once(run(dialogue))
    return dialogue


def assert_equal(settings: EnvironmentSettings, task: TaskRef, moves: list[Move]) -> float:
    """Play both ways and compare; returns the reward."""
    dialogue = fast(settings, task, moves)
    environment = dialogue._orchestrator.environment
    hashes = (environment.get_db_hash(), environment.get_user_db_hash())
    tau2_task = get_task(task)
    limits = {"max_steps": settings.max_steps, "max_errors": settings.max_errors}
    stock = play_stock(settings.domain, tau2_task, moves, solo_mode=settings.solo_mode, **limits)
    assert dialogue.done
    assert hashes == (stock.environment.get_db_hash(), stock.environment.get_user_db_hash())
    ours = dialogue.outcome().simulation
    assert comparable(ours) == comparable(stock.simulation.model_dump(mode="json"))
    if settings.domain == "mock" and not tau2_can_score(ours, task, settings):
        # mock asserts about a task the agent never created: tau2 loses the episode, here it is a failed one.
        with pytest.raises(ValueError, match="not found"):
            stock.reward_info()
        assert ours["reward_info"]["reward"] == 0.0
    else:
        assert ours["reward_info"] == stock.reward_info().model_dump(mode="json")
    return dialogue.outcome().reward


def count_of(mode: str) -> int:
    return int(os.environ.get("EQUALITY_EPISODES", DEFAULT.get(mode, 20)))


@pytest.mark.parametrize("mode", MODES)
def test_random_episodes_equal_stock(mode: str) -> None:
    chosen, rewards = MODES[mode], Counter[float]()
    tasks = load_tasks(chosen.domain, "base", solo_mode=chosen.solo_mode)

    @given(st.integers(0, 2**40))
    @settings(
        max_examples=count_of(mode),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def check(seed: int) -> None:
        rng = random.Random(seed)
        task = rng.choice(tasks)
        with numbered_bills():
            rewards[assert_equal(chosen, task, random_moves(rng, task, tasks, chosen))] += 1

    check()
    if count_of(mode) >= 20:
        assert len(rewards) > 1, f"both rewards must occur for the check to mean anything: {rewards}"
    blueprint(chosen.domain, chosen.solo_mode).verify_pristine()


def _walks(mode: str, count: int) -> Iterator[tuple[TaskRef, list[Move]]]:
    tasks = load_tasks(MODES[mode].domain, "base", solo_mode=MODES[mode].solo_mode)
    rng = random.Random(11)
    for _ in range(count):
        task = rng.choice(tasks)
        yield task, random_moves(rng, task, tasks, MODES[mode])


def test_a_copy_on_write_that_forgets_to_copy_is_caught() -> None:
    """Negative control: records handed out uncopied let one episode's changes into the next."""

    def shared(self: CowDict, key: str) -> Any:
        self.touched.add(key)
        return dict.__getitem__(self, key)

    chosen = MODES["retail"]
    plan = blueprint("retail", False)
    pristine = {name: baseline.records for name, baseline in plan._fields.items()}
    saved = {name: {key: baseline.fresh(key) for key in baseline.records} for name, baseline in plan._fields.items()}
    try:
        with mock.patch.object(CowDict, "__getitem__", shared), pytest.raises((AssertionError, InfrastructureFault)):
            for task, moves in _walks("retail", 6):
                assert_equal(chosen, task, moves)
            plan.verify_pristine()
        with pytest.raises(InfrastructureFault, match="shared_state"):
            plan.verify_pristine()
    finally:
        for name, records in saved.items():
            pristine[name].update(records)
    plan.verify_pristine()


def test_a_fingerprint_that_overlooks_changes_is_caught() -> None:
    """Negative control: when reservations are not compared, an episode without the booking would earn the reward."""

    def blind(self: CowDict) -> Any:
        return ()

    task = next(t for t in load_tasks("airline", "base") if _books(t))
    moves = [*_all_but_books(task), Move(text="Goodbye!"), Move(text="Goodbye!")]
    assert assert_equal(MODES["airline"], task, moves) == 0.0
    gold = mock.patch.dict("tau2_lightning.environment.scoring._GOLD", clear=True)
    with gold, mock.patch.object(CowDict, "changes", blind), pytest.raises(AssertionError):
        assert_equal(MODES["airline"], task, moves)


def _books(task: TaskRef) -> bool:
    return any(action.name == "book_reservation" for action in get_task(task).evaluation_criteria.actions or ())


def _all_but_books(task: TaskRef) -> list[Move]:
    actions = get_task(task).evaluation_criteria.actions
    return [Move(calls=((a.name, a.arguments),)) for a in actions if a.name != "book_reservation"]
