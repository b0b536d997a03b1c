"""Random episodes for the equality tests: gold, mutated, wrong, repeated, unknown tools, bad arguments, text."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from benchmarks.stock_tau2 import Move
from tau2_lightning.environment import EnvironmentSettings, TaskRef
from tau2_lightning.environment.replies import MALFORMED
from tau2_lightning.environment.scoring import plan_of
from tau2_lightning.environment.tasks import get_task

STRANGE: list[Any] = [None, 0, -1, 3.5, "", "x", "é", [], {}, {"a": 1}, ["x"], True, 10**9]


def random_moves(
    rng: random.Random, task: TaskRef, others: tuple[TaskRef, ...], settings: EnvironmentSettings
) -> list[Move]:
    """Moves of one episode, up to its end. The arguments of every call are an object, because stock tau2 needs that."""
    solo_mode = settings.solo_mode
    gold = _gold(task)
    schemas = plan_of(settings).tool_schemas(False)
    pool = [call for other in rng.sample(others, min(3, len(others))) for call in _gold(other)]
    calls: list[tuple[str, str, dict[str, Any]]] = []
    for item in gold:
        if rng.random() < 0.15:
            continue
        calls.append(_mutated(rng, item) if rng.random() < 0.12 else item)
        while rng.random() < 0.3:
            calls.append(_distraction(rng, gold, pool, calls, schemas))
    if rng.random() < 0.1:
        rng.shuffle(calls)
    moves = []
    while calls:
        requestor, name, arguments = calls.pop(0)
        if requestor == "user" and not solo_mode:
            moves.append(Move(text=f"Please run {name}({json.dumps(arguments)})"))
            continue
        batch = [(name, arguments)]
        while calls and rng.random() < 0.1 and not (calls[0][0] == "user" and not solo_mode):
            batch.append(calls.pop(0)[1:])
        moves.append(Move(calls=tuple(batch)))
        if not solo_mode and rng.random() < 0.15:
            moves.append(Move(text=rng.choice(["Please wait.", "I will transfer you.", "Is that all?"])))
    return moves + _ending(rng, task, solo_mode)


def _ending(rng: random.Random, task: TaskRef, solo_mode: bool) -> list[Move]:
    if solo_mode:
        return [Move(calls=(("done", {}),))]
    criteria = get_task(task).evaluation_criteria
    facts = [fact for fact in (criteria.communicate_info if criteria else None) or [] if rng.random() > 0.1]
    return [Move(text=f"Here: {'; '.join(facts)}. Goodbye!")] + [Move(text="Goodbye!")] * 3


def _gold(task: TaskRef) -> list[tuple[str, str, dict[str, Any]]]:
    criteria = get_task(task).evaluation_criteria
    actions = (criteria.actions if criteria else None) or []
    return [(action.requestor, action.name, copy.deepcopy(action.arguments)) for action in actions]


def _distraction(rng: random.Random, gold: Any, pool: Any, made: Any, schemas: Any) -> tuple[str, str, dict[str, Any]]:
    kind = rng.randrange(6)
    if kind == 0 and made:
        return copy.deepcopy(rng.choice(made))
    if kind == 1 and pool:
        return copy.deepcopy(rng.choice(pool))
    if kind == 2:
        return "assistant", rng.choice(["nope", "", "get_db_hash", "use_tool", "__init__"]), {}
    if kind == 3:
        return "assistant", rng.choice(schemas)["function"]["name"].replace("done", "nope"), {MALFORMED: "{bad"}
    schema = rng.choice([s for s in schemas if s["function"]["name"] != "done"])["function"]
    known = {key: value for _, _, args in [*gold, *pool] for key, value in args.items()}
    fields = schema["parameters"].get("properties", {})
    arguments = {key: known[key] if key in known and rng.random() < 0.8 else rng.choice(STRANGE) for key in fields}
    return "assistant", schema["name"], copy.deepcopy(arguments)


def _mutated(rng: random.Random, item: tuple[str, str, dict[str, Any]]) -> tuple[str, str, dict[str, Any]]:
    requestor, name, arguments = copy.deepcopy(item)
    kind = rng.randrange(4)
    if kind == 0 and arguments:
        arguments.pop(rng.choice(sorted(arguments)))
    elif kind == 1 and arguments:
        arguments[rng.choice(sorted(arguments))] = rng.choice(STRANGE)
    elif kind == 2:
        arguments[rng.choice(["extra", "requestor", "tool_name", "self"])] = rng.choice(STRANGE)
    elif arguments:
        key = rng.choice(sorted(arguments))
        if isinstance(arguments[key], str):
            arguments[key] = arguments[key].upper() + "x"
    return requestor, name, arguments
