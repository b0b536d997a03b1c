"""Stand-ins for environments when tau2's evaluator scores an episode: their states are known already.

tau2's evaluator builds two environments through a constructor: one to replay the episode into, one for the gold
actions. `Played` is such a constructor that gives it the environment that was played, and the remembered gold state.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from .blueprints import Blueprint, blueprint

# tau2's hashes of the agent's and of the user's database, or values that are equal exactly when the hashes are.
State = tuple[Any, Any]
_LOCK = threading.Lock()
_GOLD: dict[tuple[str, str, int, bool], State] = {}  # by domain, task id, task object, by differences


def _state(environment: Any, plan: Blueprint, by_differences: bool) -> State:
    """A value that is equal for two environments exactly when tau2's hashes of both their databases are."""
    database, shared = getattr(environment.tools, "db", None), plan.shared
    if by_differences and shared is not None and isinstance(database, shared.cls):
        return shared.fingerprint(database), environment.get_user_db_hash()
    if plan.one_database and database is getattr(environment.user_tools, "db", None):
        return (environment.get_db_hash(),) * 2
    return environment.get_db_hash(), environment.get_user_db_hash()


def by_differences(plan: Blueprint) -> bool:
    """Whether databases may be compared by their differences from the shared records. tau2 builds the gold environment
    without naming a mode, so both modes must have the same records.
    """
    shared, gold = plan.shared, _golden(plan).shared
    return shared is not None and gold is not None and shared.digest == gold.digest


def _golden(plan: Blueprint) -> Blueprint:
    return blueprint(plan.domain, False, plan.retrieval)


def _gold_state(task: Any, played: Blueprint, by_differences: bool) -> State:
    """The database state after the gold actions, made as tau2's evaluator makes it. Cached by task."""
    key = (played.domain, task.id, id(task), by_differences)
    with _LOCK:
        state = _GOLD.get(key)
    if state is not None:
        return state
    plan = _golden(played)
    environment, initial = plan.environment(task), task.initial_state
    environment.set_state(
        initialization_data=initial.initialization_data if initial is not None else None,
        initialization_actions=initial.initialization_actions if initial is not None else None,
        message_history=(initial.message_history or []) if initial is not None else [],
    )
    for action in task.evaluation_criteria.actions or []:
        # As in tau2: gold actions may fail (23 of retail's do), and the gold state is what the others leave.
        with contextlib.suppress(Exception):
            environment.make_tool_call(tool_name=action.name, requestor=action.requestor, **action.arguments)
    state = _state(environment, plan, by_differences)
    with _LOCK:
        return _GOLD.setdefault(key, state)


class Played:
    """Passed to tau2's evaluator as its environment constructor: returns environments whose state is known."""

    def __init__(
        self, environment: Any, task: Any, plan: Blueprint, *, replay: bool = False, strict: bool = False
    ) -> None:
        self._environment, self._task, self._plan = environment, task, plan
        self._replay, self._strict = replay, strict
        self._by_differences = by_differences(plan)

    def __call__(self, **kwargs: Any) -> Any:
        # tau2 passes the mode for the environment that it replays into, and not for the gold one.
        if "solo_mode" in kwargs:
            state = partial(_state, self._environment, self._plan, self._by_differences)
            return _Actual(self._environment, state, self._replay, self._strict)
        return _Gold(_gold_state(self._task, self._plan, self._by_differences))


class _Actual:
    """The environment whose end state is judged: already played, or fresh and to be replayed into (``replay``)."""

    def __init__(self, environment: Any, state: Callable[[], State], replay: bool, strict: bool) -> None:
        self._environment, self._replay, self._strict = environment, replay, strict
        self._state = cache(state)  # tau2 asks twice; the environment does not change any more

    def set_state(self, **kwargs: Any) -> None:
        if self._replay:
            self._environment.set_state(**kwargs)

    def get_db_hash(self) -> Any:
        return self._state()[0]

    def get_user_db_hash(self) -> Any:
        return self._state()[1]

    def run_env_assertion(self, assertion: Any, raise_assertion_error: bool = True) -> bool:
        try:
            return bool(self._environment.run_env_assertion(assertion, raise_assertion_error=raise_assertion_error))
        except Exception:
            # tau2 itself would fail: mock asserts the status of a task that the agent may never have created.
            if self._strict:
                raise
            return False


class _Gold:
    """The cached gold state: nothing is executed again."""

    def __init__(self, state: State) -> None:
        self._state = state

    def set_state(self, **kwargs: Any) -> None:
        del kwargs

    def make_tool_call(self, **kwargs: Any) -> None:
        del kwargs

    def get_db_hash(self) -> Any:
        return self._state[0]

    def get_user_db_hash(self) -> Any:
        return self._state[1]
