"""Generated demonstrations: of telecom solo and of dialogues by scripted experts, of other domains by gold actions.

An expert that is always right leaves nothing for reinforcement learning to improve. So fixes are left out at random, in
ways that the agent can see, and each demonstration carries the reward it earned. ``require_reward=1.0`` keeps only the
successful ones. The experts of dialogues (`experts`) use only what they were told or have read.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tau2_lightning.errors import ConfigError, Violation

from .dialogue import Dialogue
from .experts.casting import has_expert, play_honestly
from .experts.turns import LeftOut
from .scoring import cross_check, plan_of, replayed_reward
from .settings import EnvironmentSettings, TaskRef
from .tasks import get_task
from .telecom_expert import Act, Plan, expert, forgetful

_PHONE = re.compile(r"\b\d{3}-\d{3}-\d{4}\b")
# Give up when fewer than one in MAX_TRIES demonstrations earns the required reward.
MAX_TRIES = 20


@dataclass(frozen=True)
class Demonstration:
    """One episode to imitate.

    ``messages`` are OpenAI messages with tool calls and results; ``tools`` the schemas offered (one object shared by
    all demonstrations). ``reward`` is what tau2's evaluator gives a replay of the trajectory; ``official``: the
    evaluator has confirmed it on environments that tau2 built from its files. NL assertions count in neither:
    demonstrations are made without a model that could judge them.
    """

    task_id: str
    messages: list[dict[str, Any]] = field(repr=False)
    tools: list[dict[str, Any]] = field(repr=False)
    reward: float
    official: bool


class Playable:
    """Which tasks can be demonstrated, found out when they are first asked for. ``left_out``: why not, by task id."""

    def __init__(self, settings: EnvironmentSettings) -> None:
        self._settings = settings
        self._tried: set[str] = set()
        self.left_out: dict[str, str] = {}

    def has(self, task: TaskRef) -> bool:
        """Whether the domain's expert, leaving nothing out, earns the full reward. Always true without an expert."""
        if has_expert(self._settings) and task.task_id not in self._tried:
            self._tried.add(task.task_id)
            try:
                made, simulation = demonstrate(self._settings, task, random.Random(0), 0.0, {})
            except LeftOut as reason:
                self.left_out[task.task_id] = str(reason)
            else:
                if simulation["termination_reason"] == "max_steps":
                    longest = self._settings.max_steps
                    self.left_out[task.task_id] = f"the expert needs more steps than econfig.max_steps={longest}"
                elif made.reward < 1.0 - 1e-9:
                    self.left_out[task.task_id] = "what the expert does earns no reward"
        return task.task_id not in self.left_out


def generate_demonstrations(
    settings: EnvironmentSettings,
    tasks: Sequence[TaskRef],
    count: int,
    seed: int,
    *,
    skip: float = 0.2,
    skip_by_skill: Mapping[str, float] | None = None,
    require_reward: float | None = None,
    official_share: float = 0.02,
    playable: Playable | None = None,
) -> list[Demonstration]:
    """``count`` demonstrations on ``tasks``, drawn evenly over their strata.

    Each fix or change that an expert makes, and elsewhere each gold action, is left out with probability ``skip``, or
    with its tool's probability in ``skip_by_skill``. With ``require_reward`` only demonstrations that earn it are kept.
    tau2's evaluator replays every one, and scores every ``1 / official_share``-th again on environments of its own.
    Tasks that no honest agent can play are not demonstrated; ``playable`` remembers them between calls.

    Deterministic in ``seed``. Raises ConfigError without tasks, or when hardly any demonstration earns the reward
    required; ScoreMismatch when the two scores differ.
    """
    if not tasks:
        raise ConfigError([Violation("tasks", 0, "no tasks to demonstrate", "Choose a split that is not empty")])
    if settings.user.kind == "llm":
        remedy = "Use user=scripted, or solo_mode=true"
        raise ConfigError([Violation("econfig.user", "llm", "demonstrations are made without a model", remedy)])
    settings = replace(settings, unjudged=True)
    rng = random.Random(seed)
    chances = dict(skip_by_skill or {})
    playable = playable or Playable(settings)
    made: list[Demonstration] = []
    for tried, task in enumerate(_stratified(tasks, rng)):
        if len(made) >= count:
            break
        if tried > MAX_TRIES * (len(made) + 10):
            problem = f"only {len(made)} of {tried} demonstrations earned it"
            if playable.left_out:
                reasons = Counter(playable.left_out.values()).most_common()
                listed = "; ".join(f"{count}: {reason}" for reason, count in reasons)
                problem += f"; of {len(tasks)} tasks, {len(playable.left_out)} cannot be demonstrated ({listed})"
            raise ConfigError([Violation("require_reward", require_reward, problem, "Lower skip, or drop the demand")])
        if not playable.has(task):
            continue
        check = official_share > 0 and len(made) % max(1, round(1 / official_share)) == 0
        try:
            demonstration, simulation = demonstrate(settings, task, rng, skip, chances)
        except LeftOut:  # a later step needs one that was forgotten
            continue
        if require_reward is not None and demonstration.reward < require_reward - 1e-9:
            continue
        if check:
            official = cross_check(simulation, task, settings)
            demonstration = replace(demonstration, official=official is not None)
        made.append(demonstration)
    return made


def demonstrate(
    settings: EnvironmentSettings,
    task: TaskRef,
    rng: random.Random,
    skip: float,
    skip_by_skill: Mapping[str, float],
) -> tuple[Demonstration, Mapping[str, Any]]:
    """One demonstration of one task, and its simulation; see ``generate_demonstrations``. Raises LeftOut for a task
    that no honest agent can play.
    """

    def forgets(skill: str) -> bool:
        return rng.random() < skip_by_skill.get(skill, skip)

    settings = replace(settings, unjudged=True)
    dialogue = Dialogue(task, settings, seed=rng.getrandbits(31))
    if has_expert(settings):
        _at_once(play_honestly(dialogue, task, settings, forgets))
    elif isinstance(plan := plan_for(task, settings), list):
        _at_once(_follow(dialogue, (message for skill, message in plan if not (skill and forgets(skill)))))
    else:
        _at_once(_diagnose(dialogue, forgetful(plan, forgets)))
    outcome = dialogue.outcome()
    reward = replayed_reward(outcome.simulation, task, settings)
    made = Demonstration(task.task_id, dialogue.messages, dialogue.tools, reward, official=False)
    return made, outcome.simulation


def plan_for(task: TaskRef, settings: EnvironmentSettings) -> Plan | list[tuple[str, dict[str, Any]]]:
    """The expert's plan in telecom solo; elsewhere (skill or "", assistant message) pairs of the gold actions."""
    tau2_task = get_task(task)
    ids = _telecom_ids(task, settings, tau2_task) if settings.solo_mode else None
    if ids is not None:
        return expert(tau2_task.ticket, *ids)
    return list(_gold_messages(tau2_task, settings.solo_mode))


def _telecom_ids(task: TaskRef, settings: EnvironmentSettings, tau2_task: Any) -> tuple[str, str] | None:
    """(customer id, line id) of the phone number in the ticket, or None outside telecom."""
    phone = _PHONE.search(tau2_task.ticket or "")
    if not task.domain.startswith("telecom") or phone is None:
        return None
    plan, number = plan_of(settings), phone.group()
    ids: tuple[str, str] = plan.once(f"ids of {number}", lambda environment: _ids_by_phone(environment, number))
    return ids


def _ids_by_phone(environment: Any, phone: str) -> tuple[str, str]:
    tools = environment.tools
    return tools.get_customer_by_phone(phone).customer_id, tools._get_line_by_phone(phone).line_id


def _gold_messages(task: Any, solo_mode: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    criteria = task.evaluation_criteria
    for index, action in enumerate((criteria.actions if criteria is not None else None) or ()):
        if action.requestor == "user" and not solo_mode:
            yield action.name, _text(f"Please run {action.name}({json.dumps(action.arguments)})")
        else:
            yield action.name, _call(Act(action.name, action.arguments), index)
    facts = (criteria.communicate_info if criteria is not None else None) or []
    if solo_mode:
        yield "", _call(Act("done"), 999)
    else:
        said = f"Here is what you asked for: {'; '.join(facts)}. " if facts else ""
        yield "", _text(f"{said}Goodbye!")


async def _follow(dialogue: Dialogue, messages: Iterator[dict[str, Any]]) -> None:
    await dialogue.start()
    for message in messages:
        if dialogue.done:
            return
        await dialogue.reply(message)
    while not dialogue.done:
        # The user may have spoken last, as after a transfer: end the call.
        await dialogue.reply(_text("Goodbye!"))


async def _diagnose(dialogue: Dialogue, plan: Plan) -> None:
    await dialogue.start()
    act = next(plan, Act("done"))
    for index in range(dialogue.settings.max_steps):
        await dialogue.reply(_call(act, index))
        if dialogue.done:
            return
        try:
            act = plan.send(dialogue.messages[-1]["content"])
        except StopIteration:
            act = Act("done")


def _call(act: Act, index: int) -> dict[str, Any]:
    function = {"name": act.name, "arguments": json.dumps(dict(act.arguments))}
    call = {"id": f"call_{index}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _text(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _stratified(tasks: Sequence[TaskRef], rng: random.Random) -> Iterator[TaskRef]:
    strata: dict[str, list[TaskRef]] = {}
    for task in tasks:
        strata.setdefault(task.stratum, []).append(task)
    while True:
        for name in sorted(strata):
            yield rng.choice(strata[name])


def _at_once(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits, inside or outside an event loop."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("a scripted episode waited for something")
