"""A policy folder with another chat template, and tau2 episodes through a proxy whose template is given."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tau2_lightning.environment import Dialogue, EnvironmentSettings, find_task
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.tree import Session
from tests.rollout.proxy.rig import Rig

#: A task of tau2's mock domain without a user, and the calls that solve it.
SETTINGS = EnvironmentSettings("mock", solo_mode=True)
TASK = "create_task_1"
GOLD: list[tuple[str, dict[str, Any]]] = [
    ("create_task", {"user_id": "user_1", "title": "Important Meeting"}),
    ("done", {}),
]


def with_template(policy: Path, source: str, folder: Path) -> Path:
    """A copy of ``policy`` in ``folder`` with the chat template ``source``."""
    shutil.copytree(policy, folder)
    (folder / "chat_template.jinja").write_text(source)
    return folder


def words_of(policy: Path, *words: str) -> list[str]:
    """A small run of the policy on solo telecom."""
    return [f"actor.path={policy}", "actor=tiny", *words]


@asynccontextmanager
async def rig_of(source: str, parser: str = "auto", **settings: Any) -> AsyncIterator[Rig]:
    """A proxy whose policy has the chat template ``source``."""
    async with Rig(ProxySettings(request_timeout=10, **settings), parser=parser, source=source) as rig:
        yield rig


async def solo_episode(rig: Rig, said: Sequence[str]) -> tuple[dict[str, Any], Session]:
    """Play the task with the policy's turns ``said``; returns the workflow's result and the session."""
    rig.engine.script.extend(said)
    async with episode_access(rig.service, rig.server.base_url, over_http=False, timeout=10) as access:
        task = find_task("mock", TASK)
        session = rig.store.start(tools=Dialogue(task, SETTINGS).tools)
        result = await Tau2Workflow(SETTINGS).run({"task": task, "seed": 3}, client=access.client(session.api_key))
        return result, session


def prompts(rig: Rig) -> list[str]:
    """The prompts that the engine got, as text."""
    return [rig.format.tokenizer.decode(ids) for ids, _, _ in rig.engine.calls]
