"""The opening prompts of a run's tasks, measured once in a process: the checks and the forecast both need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tau2_lightning.blocking import blocking
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import Dialogue, EnvironmentSettings, TaskRef, UserSettings, load_tasks
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.policy.loading import last_written
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.template_words import template_kwargs
from tau2_lightning.rollout.engines import chat_format_of
from tau2_lightning.segments import common_prefix

LOOKED_AT = 20  # tasks of a split


@dataclass(frozen=True)
class Openings:
    """Opening prompts of one domain in tokens: the ``longest`` of training and validation tasks; the ``mean`` of
    training tasks, and how many leading tokens all of these share (``common``)."""

    longest: int
    mean: float
    common: int


_Domains = Mapping[str, tuple[EnvironmentSettings, tuple[str, str]]]
_measured: dict[str, dict[str, Openings]] = {}


def longest_opening(config: RunConfig, policy: Path) -> int:
    """Tokens of the longest opening prompt of any domain; see `openings_of`."""
    return max(each.longest for each in openings_of(config, policy).values())


def openings_of(config: RunConfig, policy: Path) -> dict[str, Openings]:
    """The opening prompts of the first `LOOKED_AT` training and validation tasks of each domain.

    Raises ConfigError for a template that does not exist, ChatFormatError for one that refuses the messages.
    """
    domains = {}
    for name, view in config.by_domain.items():
        settings = environment_settings(view.econfig)
        if settings.user.kind == "llm":
            settings = replace(settings, user=UserSettings(kind="scripted"))  # no user model is needed for this
        domains[name] = settings, (view.train_dataset.split, view.valid_dataset.split)
    words, r = template_kwargs(config.gconfig), config.rollout
    reader = (config.actor.chat_template, r.tool_call_parser, r.reasoning_parser)
    key = repr((policy, last_written(policy), reader, words, domains))  # everything that the prompts depend on
    if key not in _measured:
        _measured[key] = blocking(_measure(chat_format_of(config, policy), domains, words))
    return _measured[key]


async def _measure(chat_format: ChatFormat, domains: _Domains, words: dict[str, object]) -> dict[str, Openings]:
    found = {}
    for name, (settings, (training, validation)) in domains.items():
        rendered = {
            split: [await _opening(chat_format, task, settings, words) for task in _tasks(settings, split)]
            for split in dict.fromkeys((training, validation))
        }
        played = rendered[training]
        lengths = [len(tokens) for tokens in played]
        found[name] = Openings(
            longest=max((len(tokens) for every in rendered.values() for tokens in every), default=0),
            mean=sum(lengths) / len(lengths) if lengths else 0.0,
            common=min((common_prefix(played[0], tokens) for tokens in played), default=0),
        )
    return found


def _tasks(settings: EnvironmentSettings, split: str) -> Sequence[TaskRef]:
    return load_tasks(settings.domain, split, solo_mode=settings.solo_mode)[:LOOKED_AT]


async def _opening(
    chat_format: ChatFormat, task: TaskRef, settings: EnvironmentSettings, words: dict[str, object]
) -> npt.NDArray[np.int32]:
    dialogue = Dialogue(task, settings)
    await dialogue.start()
    return np.array(chat_format.render(dialogue.messages, dialogue.tools, **words), np.int32)
