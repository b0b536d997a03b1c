"""The opening prompts of a run's tasks, measured once in a process: the checks and the forecast both need them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import Dialogue, EnvironmentSettings, UserSettings, load_tasks
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.policy.loading import last_written
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.template_words import template_kwargs
from tau2_lightning.rollout.engines import chat_format_of

LOOKED_AT = 20  # tasks of a split
_Domains = Sequence[tuple[EnvironmentSettings, tuple[str, ...]]]
_measured: dict[str, int] = {}


def longest_opening(config: RunConfig, policy: Path) -> int:
    """Tokens of the longest opening prompt among the first `LOOKED_AT` training and validation tasks of each domain.

    Raises ConfigError for a template that does not exist, ChatFormatError for one that refuses the messages.
    """
    domains = []
    for view in config.by_domain.values():
        settings = environment_settings(view.econfig)
        if settings.user.kind == "llm":
            settings = replace(settings, user=UserSettings(kind="scripted"))  # no user model is needed for this
        domains.append((settings, (view.train_dataset.split, view.valid_dataset.split)))
    words, r = template_kwargs(config.gconfig), config.rollout
    reader = (config.actor.chat_template, r.tool_call_parser, r.reasoning_parser)
    key = repr((policy, last_written(policy), reader, words, domains))  # everything that the prompts depend on
    if key not in _measured:
        _measured[key] = asyncio.run(_longest(chat_format_of(config, policy), domains, words))
    return _measured[key]


async def _longest(chat_format: ChatFormat, domains: _Domains, words: dict[str, object]) -> int:
    longest = 0
    for settings, splits in domains:
        for split in dict.fromkeys(splits):
            for task in load_tasks(settings.domain, split, solo_mode=settings.solo_mode)[:LOOKED_AT]:
                dialogue = Dialogue(task, settings)
                await dialogue.start()
                longest = max(longest, len(chat_format.render(dialogue.messages, dialogue.tools, **words)))
    return longest
