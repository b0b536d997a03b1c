"""Fast episodes equal stock ones: the same messages, database hashes, rewards and reward breakdowns.

By default the tests play a few random episodes per domain; ``make test-equality`` plays 2000 of each.
"""

from __future__ import annotations

import gc
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.stock_tau2 import Move, StockEpisode, parsed_once, play_stock
from tau2_lightning.environment import Dialogue, EnvironmentSettings, TaskRef, load_tasks
from tau2_lightning.environment.databases.cow_dict import CowDict
from tau2_lightning.environment.databases.cow_list import CowList
from tau2_lightning.environment.demonstrations import _at_once
from tau2_lightning.environment.knowledge import constructor_arguments
from tau2_lightning.environment.made_up_ids import MadeUpIds
from tau2_lightning.environment.scoring import plan_of
from tau2_lightning.environment.tasks import get_task, scored_task
from tau2_lightning.errors import InfrastructureFault, SharedStateChanged
from tests.environment.helpers import banking, scripted, solo, unjudged, upstream_only
from tests.environment.random_moves import random_moves

MODES = {
    "airline": scripted("airline"),
    "retail": unjudged("retail"),
    "telecom-dual": scripted("telecom"),
    "telecom-solo": solo("telecom"),
    "mock-dual": scripted("mock"),
    "mock-solo": solo("mock"),
    "banking-bm25": banking("bm25_grep"),
    "banking-golden": banking("golden_retrieval"),
}
# Modes that only upstream has.
UPSTREAM = {"banking-bm25", "banking-golden"}
BY_DEFAULT = {"airline": 2, "retail": 3, "telecom-dual": 6, "telecom-solo": 5, "mock-dual": 20, "mock-solo": 20}
BY_DEFAULT |= {"banking-bm25": 8, "banking-golden": 8}
EPISODES = int(os.environ.get("EQUALITY_EPISODES", "0"))
# Many episodes are played in parts, so that several processes can share them.
PARTS = max(1, EPISODES // 250)
IGNORED = {"timestamp", "turn_idx", "raw_data", "usage", "cost"}


def comparable(simulation: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a simulation that must be equal: all except clocks and random ids."""
    messages = [{k: v for k, v in m.items() if k not in IGNORED} for m in simulation["messages"]]
    return {"messages": messages, "termination_reason": simulation["termination_reason"]}


class _Counting:
    """Replaces the uuid module in telecom's tools, because random bill ids differ even between tau2's own replays."""

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
    tau2_task = scored_task(task, settings)
    limits = {"max_steps": settings.max_steps, "max_errors": settings.max_errors}
    arguments = constructor_arguments(settings.domain, settings.retrieval, tau2_task)
    with MadeUpIds("stock"):  # searches of the knowledge base report a time of 0
        stock = play_stock(
            settings.domain, tau2_task, moves, solo_mode=settings.solo_mode, arguments=arguments, **limits
        )
    assert dialogue.done
    assert hashes == (stock.environment.get_db_hash(), stock.environment.get_user_db_hash())
    ours = dialogue.outcome().simulation
    assert comparable(ours) == comparable(stock.simulation.model_dump(mode="json"))
    try:
        theirs = stock.reward_info().model_dump(mode="json")
    except Exception:  # noqa: BLE001 - whatever domain code raises
        # If an assertion raises, tau2 gives no score; we count the assertion as not met. Nothing else may raise.
        assert _an_assertion_raises(stock)
        assert ours["reward_info"]["reward"] == 0.0
    else:
        assert ours["reward_info"] == theirs
    return dialogue.outcome().reward


def _an_assertion_raises(stock: StockEpisode) -> bool:
    for assertion in stock.task.evaluation_criteria.env_assertions or ():
        try:
            stock.environment.run_env_assertion(assertion, raise_assertion_error=False)
        except Exception:  # noqa: BLE001 - whatever domain code raises
            return True
    return False


@pytest.fixture
def many_episodes() -> Iterator[None]:
    """Save time: tau2 parses each file once, and the garbage collector does not traverse large databases."""
    gc.collect()
    gc.disable()
    try:
        with parsed_once(), numbered_bills():
            yield
    finally:
        gc.enable()


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=upstream_only) if mode in UPSTREAM else mode for mode in MODES]
)
def test_random_episodes_equal_stock(mode: str, part: int, many_episodes: None) -> None:
    chosen, rewards = MODES[mode], Counter[float]()
    tasks = load_tasks(chosen.domain, "full" if chosen.domain == "telecom" else "base", solo_mode=chosen.solo_mode)
    count = EPISODES // PARTS or BY_DEFAULT[mode]

    @given(st.integers(0, 2**40))
    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def check(seed: int) -> None:
        rng = random.Random(f"{part}/{seed}")
        task = rng.choice(tasks)
        rewards[assert_equal(chosen, task, random_moves(rng, task, tasks, chosen))] += 1
        if sum(rewards.values()) % 50 == 0:
            gc.collect()

    check()
    assert rewards.total() >= count
    if count >= 20:
        assert len(rewards) > 1, f"all rewards are equal, so the check shows nothing: {rewards}"
    plan_of(chosen).verify_pristine()


def test_a_database_parsed_once_is_the_one_tau2_loads() -> None:
    import tau2.environment.db as db
    from tau2.domains.retail.data_model import RetailDB
    from tau2.domains.retail.utils import RETAIL_DB_PATH

    stock = RetailDB.load(RETAIL_DB_PATH)
    with parsed_once():
        first, second = RetailDB.load(RETAIL_DB_PATH), RetailDB.load(RETAIL_DB_PATH)
        assert first == second == stock and first.get_hash() == stock.get_hash()
        for order in first.orders.values():
            order.status = "changed"
            order.items.clear()
        for product in first.products.values():
            for variant in product.variants.values():
                variant.options.clear()
        assert second == stock == RetailDB.load(RETAIL_DB_PATH)
    with pytest.raises(AssertionError, match="has changed what was read"), parsed_once():
        db.load_file(RETAIL_DB_PATH)["orders"].clear()


def _walks(mode: str, count: int) -> Iterator[tuple[TaskRef, list[Move]]]:
    tasks = load_tasks(MODES[mode].domain, "base", solo_mode=MODES[mode].solo_mode)
    rng = random.Random(11)
    for _ in range(count):
        task = rng.choice(tasks)
        yield task, random_moves(rng, task, tasks, MODES[mode])


def _uncopied_by_key(self: CowDict, key: str) -> Any:
    if not dict.__contains__(self, key):
        dict.__setitem__(self, key, self.baseline.records[key])
    return dict.__getitem__(self, key)


def _uncopied(self: CowList, index: int, record: Any) -> Any:
    return record


@pytest.mark.parametrize(
    ("mode", "bug"),
    [
        ("retail", mock.patch.object(CowDict, "__getitem__", _uncopied_by_key)),
        ("telecom-solo", mock.patch.object(CowList, "_own", _uncopied)),
    ],
)
def test_a_copy_on_write_that_forgets_to_copy_is_caught(many_episodes: None, mode: str, bug: Any) -> None:
    """Negative control: if records are given out without a copy, changes of one episode show in the next."""
    chosen = MODES[mode]
    anew = mock.patch.dict("tau2_lightning.environment.blueprints._BLUEPRINTS", clear=True)
    gold = mock.patch.dict("tau2_lightning.environment.end_states._GOLD", clear=True)
    with anew, gold:  # the caches that the bug corrupts are dropped afterwards
        plan = plan_of(chosen)
        with bug, pytest.raises((AssertionError, SharedStateChanged, InfrastructureFault)):
            for task, moves in _walks(mode, 6):
                assert_equal(chosen, task, moves)
            plan.verify_pristine()
        with pytest.raises(SharedStateChanged, match="pristine"):
            plan.verify_pristine()
    plan_of(chosen).verify_pristine()


def test_a_fingerprint_that_overlooks_changes_is_caught(many_episodes: None) -> None:
    """Negative control: if records were not compared, an episode without the exchange would earn the reward."""

    def blind(self: CowDict) -> Any:
        return ()

    task = load_tasks("retail", "base")[0]
    writes = [a for a in get_task(task).evaluation_criteria.actions or () if not a.name.startswith(("get", "find"))]
    assert writes
    moves = [Move(text="Goodbye!"), Move(text="Goodbye!")]
    assert assert_equal(MODES["retail"], task, moves) == 0.0
    gold = mock.patch.dict("tau2_lightning.environment.end_states._GOLD", clear=True)
    with gold, mock.patch.object(CowDict, "changes", blind), pytest.raises(AssertionError):
        assert_equal(MODES["retail"], task, moves)
