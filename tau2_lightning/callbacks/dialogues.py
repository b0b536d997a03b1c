"""A few of the episodes that a run keeps, as texts for dashboards."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tau2_lightning.rollout_files.schema import KeptEpisode
from tau2_lightning.telemetry.dashboards import ShownDialogue

MESSAGE, DIALOGUE = 2_000, 20_000  # characters at most


def sampled(episodes: Sequence[KeptEpisode], most: int, seed: int) -> list[KeptEpisode]:
    """At most ``most`` of the finished episodes: the best and the worst of the group that differs most, then others by
    chance, the same for the same ``seed``."""
    finished = [one for one in episodes if one.reward is not None]
    by_group: dict[tuple[str, str], list[KeptEpisode]] = defaultdict(list)
    for one in finished:
        by_group[one.domain, one.group].append(one)
    ranked = [sorted(group, key=_reward) for group in by_group.values()]
    apart = max(ranked, key=lambda group: _reward(group[-1]) - _reward(group[0]), default=[])
    chosen = [apart[-1], apart[0]] if len(apart) > 1 else []
    taken = {id(one) for one in chosen}
    others = [one for one in finished if id(one) not in taken]
    random.Random(seed).shuffle(others)
    return [*chosen, *others][:most]


def shown(one: KeptEpisode) -> ShownDialogue:
    """The line of an episode."""
    return ShownDialogue(
        step=one.step,
        domain=one.domain,
        task=one.task_id,
        sample=one.sample,
        status=one.status,
        reward=_reward(one),
        reward_parts=_counted(one.reward_parts),
        advantage=one.advantage,
        turns=one.n_turns,
        sampled_tokens=one.sampled_tokens,
        staleness=one.staleness,
        ended=one.termination,
        transferred=one.transferred,
        mistakes=_counted(one.mistakes),
        user_faults=_counted(one.user_faults),
        dialogue=transcript(one.messages),
    )


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """The messages as Markdown, a paragraph for each; the system's, which all dialogues share, by its length only."""
    parts = []
    for message in messages:
        role, content = str(message.get("role")), str(message.get("content") or "")
        if role in ("system", "developer"):
            parts.append(f"**{role}**: ({len(content)} characters)")
            continue
        who = f"{role} of the user" if message.get("by") == "user" else role
        calls = [f"`{call.get('name')}({_arguments(call.get('arguments'))})`" for call in message.get("calls") or ()]
        marks = [f"[{fault.get('kind')}]" for fault in message.get("faults") or ()]
        parts.append(" ".join([f"**{who}**:", *filter(None, [_cut(content, MESSAGE)]), *calls, *marks]))
    return _cut("\n\n".join(parts), DIALOGUE)


def _reward(one: KeptEpisode) -> float:
    return one.reward or 0.0


def _counted(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _arguments(arguments: Any) -> str:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, default=str, ensure_ascii=False)
    return _cut(text, MESSAGE)


def _cut(text: str, most: int) -> str:
    """Also without halves of surrogate pairs, which have no place in a file."""
    whole = text.encode("utf-8", "replace").decode()
    return whole if len(whole) <= most else f"{whole[:most]} ... ({len(whole) - most} more characters)"
