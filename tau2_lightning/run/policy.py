"""The policy that a run starts from, and the checks that need it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import Dialogue, UserSettings, load_tasks
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.policy.gguf import given_policy
from tau2_lightning.rollout.chat.template_words import template_kwargs
from tau2_lightning.rollout.engines import chat_format_of
from tau2_lightning.run.templates import check_template
from tau2_lightning.strategy.preflight import check_options, replays_experts
from tau2_lightning.telemetry.phases import PhaseClock

from .checkpoints import check_checkpoint, check_size
from .generation_rules import check_template_words


def prepare_policy(config: RunConfig, clock: PhaseClock, folder: RunFolder, checkpoint: str | None) -> Path:
    """The Hugging Face folder that training starts from.

    This is what ``actor.path`` names (a hub id is downloaded), or the tiny policy, which is warm-started once and kept.
    Raises ConfigError when ``checkpoint`` is of another model, or when opening prompts do not fit; before the warm
    start, where one is needed.
    """

    def accept(policy: Path) -> None:
        check_checkpoint(checkpoint, policy)
        if global_rank() == 0:
            check_options(config, policy)
            check_template_words(config, policy)
            check_prompts(config, policy)

    if config.actor.path is not None:
        policy = given_policy(config.actor)
        accept(policy)
        return policy
    from tau2_lightning.warm_start.make import warm_start_policy

    if checkpoint is not None:
        check_size(checkpoint, config.actor.size or "s")
    with clock.phase("warm start"):
        return warm_start_policy(config, folder.logs, accept)


def with_router_replay(config: RunConfig, policy: Path) -> RunConfig:
    """``config`` with ``rollout.return_routed_experts`` settled for the model at ``policy``.

    Without training no experts are recorded. Raises ConfigError when they are asked for, and the trainer cannot use
    them.
    """
    asked = config.rollout.return_routed_experts
    possible = asked is not False and replays_experts(policy)
    if asked and not possible:
        problem = f"the model at {policy} has no experts whose choice the trainer can replay"
        remedy = "Use null, which asks for experts where they can be replayed"
        raise ConfigError([Violation("rollout.return_routed_experts", asked, problem, remedy)])
    settled = config.rollout.model_copy(update={"return_routed_experts": possible and config.mode == "train"})
    return config.model_copy(update={"rollout": settled})


def check_prompts(config: RunConfig, policy: Path, looked_at: int = 20) -> None:
    """Raise ConfigError when the policy's chat template cannot be used (see `check_template`), or when opening prompts
    leave no room for an answer in ``gconfig.max_tokens``."""
    if config.actor.path is not None and (problems := check_template(config, policy)[1]):
        raise ConfigError(problems)
    if config.rollout.workflow is not None:
        return  # the opening prompt of another agent is not known here
    longest = asyncio.run(longest_opening(config, policy, looked_at))
    if longest + config.gconfig.max_new_tokens > config.gconfig.max_tokens:
        g = config.gconfig
        problem = f"opening prompts take up to {longest} tokens, an answer up to {g.max_new_tokens} more"
        remedy = f"Use at least {longest + g.max_new_tokens}, and more for a dialogue"
        raise ConfigError([Violation("gconfig.max_tokens", g.max_tokens, problem, remedy)])


async def longest_opening(config: RunConfig, policy: Path, looked_at: int) -> int:
    """Tokens of the longest opening prompt among the first training and validation tasks."""
    chat_format = chat_format_of(config, policy)
    words = template_kwargs(config.gconfig)
    longest = 0
    for view in config.by_domain.values():
        settings = environment_settings(view.econfig)
        if settings.user.kind == "llm":
            settings = replace(settings, user=UserSettings(kind="scripted"))  # no user model is needed for this
        for split in (view.train_dataset.split, view.valid_dataset.split):
            for task in load_tasks(settings.domain, split, solo_mode=settings.solo_mode)[:looked_at]:
                dialogue = Dialogue(task, settings)
                await dialogue.start()
                longest = max(longest, len(chat_format.render(dialogue.messages, dialogue.tools, **words)))
    return longest
