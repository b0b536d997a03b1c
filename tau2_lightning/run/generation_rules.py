"""Rules for how the policy generates: arguments of its chat template, greedy validations, time limits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.policy import tiny
from tau2_lightning.policy.loading import load_tokenizer
from tau2_lightning.rollout.chat.reasoning import marks_for
from tau2_lightning.rollout.chat.template_words import template_kwargs, unknown_words

# From the inside to the outside: each must be at least as long as the one before it.
_NESTED = ("request_timeout", "episode_timeout", "collect_timeout")


def check_generation(config: RunConfig) -> list[Violation]:
    """The violations that can be found before the policy exists."""
    return [*_greedy(config), *_limits(config), *_thinking(config), *check_words(config)]


def check_template_words(config: RunConfig, policy: Path) -> None:
    """Raise ConfigError when the template of ``policy`` does not use an argument that ``gconfig`` sets."""
    tokenizer = load_tokenizer(policy, config.actor.chat_template)
    found = _of_template(config, str(tokenizer.chat_template), tokenizer, str(config.actor.path or "the tiny policy"))
    if found:
        raise ConfigError(found)


def _greedy(config: RunConfig) -> Iterator[Violation]:
    for name, view in config.by_domain.items():
        valid = view.valid_dataset
        if valid.greedy and valid.temperature:
            key = f"{f'domains.{name}.' if config.domains else ''}valid_dataset.temperature"
            problem = "is not greedy, which valid_dataset.greedy=true asks for"
            yield Violation(key, valid.temperature, problem, "Set one of the two")


def _thinking(config: RunConfig) -> Iterator[Violation]:
    """``enable_thinking`` has two places; they must not say different things."""
    name, g = "enable_thinking", config.gconfig
    other = (g.chat_template_kwargs or {}).get(name)
    if None not in (g.enable_thinking, other) and g.enable_thinking != other:
        problem = f"contradicts gconfig.{name}={str(g.enable_thinking).lower()}"
        yield Violation(f"gconfig.chat_template_kwargs.{name}", other, problem, "Set one of the two")


def _limits(config: RunConfig) -> Iterator[Violation]:
    given = [(key, value) for key in _NESTED if (value := getattr(config.rollout, key)) is not None]
    for (inner, short), (outer, long) in pairwise(given):
        if short > long:
            problem = f"is longer than rollout.{outer}={long:g}, which contains it"
            yield Violation(f"rollout.{inner}", short, problem, f"Lower it, raise rollout.{outer}, or leave one null")


def check_words(config: RunConfig) -> list[Violation]:
    """Arguments that the chat template does not know, and a reasoning parser that nobody knows. Nothing is found where
    the policy is not on this machine yet."""
    path = config.actor.path
    unusual = config.rollout.reasoning_parser not in ("auto", "think", None)
    if not template_kwargs(config.gconfig) and not unusual:
        return []
    if path is None:
        return _of_template(config, tiny.chat_template(), None, "the tiny policy")
    try:
        tokenizer = load_tokenizer(path, config.actor.chat_template)
    except ConfigError:  # another rule reports it, or the folder is made later from a GGUF file
        return []
    return _of_template(config, str(tokenizer.chat_template), tokenizer, path)


def _of_template(config: RunConfig, source: str, tokenizer: Any, model: str) -> list[Violation]:
    found = list(unknown_words(template_kwargs(config.gconfig), source, model))
    name = config.rollout.reasoning_parser
    if tokenizer is not None:
        try:
            marks_for(name, source, tokenizer)
        except ValueError as error:
            problem = str(error).removeprefix(f"reasoning_parser={name!r}").lstrip(": ")
            found.append(Violation("rollout.reasoning_parser", name, problem, "auto follows the chat template"))
    return found
