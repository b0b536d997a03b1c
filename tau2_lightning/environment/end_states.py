"""What stands in for environments when tau2's evaluator scores an episode: states that are known already.

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

# tau2's hashes of the agent's and of the user's database, or what is equal exactly when they are.
State = tuple[Any, Any]
_LOCK = threading.Lock()
_GOLD: dict[tuple[str, str, int, bool], State] = {}


def _state(environment: Any, plan: Blueprint, by_differences: bool) -> State:
    """What two environments agree in exactly when tau2's hashes of both their databases agree."""
    database, shared = getattr(environment.tools, "db", None), plan.shared
    if by_differences and shared is not None and isinstance(database, shared.cls):
        return shared.fingerprint(database), environment.get_user_db_hash()
    return environment.get_db_hash(), environment.get_user_db_hash()


def by_differences(plan: Blueprint) -> bool:
    """Whether databases may be compared by their differences from what they share: tau2 builds the gold one without
    naming a mode, so in both modes it must be the same records.
    """
    shared, gold = plan.shared, blueprint(plan.domain, False).shared
    return shared is not None and gold is not None and shared.digest == gold.digest


def _gold_state(task: Any, domain: str, by_differences: bool) -> State:
    """The database state after the gold actions, as tau2's evaluator brings it about. Remembered per task."""
    key = (domain, task.id, id(task), by_differences)
    with _LOCK:
        state = _GOLD.get(key)
    if state is not None:
        return state
    plan = blueprint(domain, False)
    environment, initial = plan.environment(), task.initial_state
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
    """Stands where tau2's evaluator expects an environment constructor, and hands it what is known already."""

    def __init__(
        self, environment: Any, task: Any, plan: Blueprint, *, replay: bool = False, strict: bool = False
    ) -> None:
        self._environment, self._task, self._plan = environment, task, plan
        self._replay, self._strict = replay, strict
        self._by_differences = by_differences(plan)

    def __call__(self, **kwargs: Any) -> Any:
        # tau2 names the mode for the environment it replays into, and not for the gold one.
        if "solo_mode" in kwargs:
            state = partial(_state, self._environment, self._plan, self._by_differences)
            return _Predicted(self._environment, state, self._replay, self._strict)
        return _Gold(_gold_state(self._task, self._plan.domain, self._by_differences))


class _Predicted:
    """The environment whose end state is judged: played already, or still pristine and to be replayed into."""

    def __init__(self, environment: Any, state: Callable[[], State], replay: bool, strict: bool) -> None:
        self._environment, self._replay, self._strict = environment, replay, strict
        self._state = cache(state)  # asked for twice, of an environment that is done

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
            # tau2 would lose the episode: mock asserts the status of a task that the agent may never have created.
            if self._strict:
                raise
            return False


class _Gold:
    """The remembered gold state; its actions need not be made again."""

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
