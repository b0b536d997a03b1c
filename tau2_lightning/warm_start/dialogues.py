"""The dialogues that a warm start imitates: read from a file, or played by tau2's demonstrators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.console import Console

from tau2_lightning.config.environment import EnvironmentConfig
from tau2_lightning.config.warm_start import WarmStartConfig
from tau2_lightning.policy.dialogues import TextDialogue, read_dialogues

DEMONSTRATIONS_AT_A_TIME = 200  # between two lines of progress


def training_dialogues(
    econfig: EnvironmentConfig, split: str, settings: WarmStartConfig, progress: Console
) -> tuple[list[TextDialogue], dict[str, Any]]:
    """The dialogues of ``settings.data``, or demonstrations played on the tasks of ``split``; and facts about them.

    Raises ConfigError when the file cannot be read.
    """
    if settings.data is not None:
        dialogues = read_dialogues(settings.data)
        return dialogues, {"data": settings.data}
    from tau2_lightning.environment import UserSettings, generate_demonstrations, load_tasks
    from tau2_lightning.environment.settings import environment_settings

    environment = environment_settings(econfig)
    if environment.user.kind == "llm":  # demonstrations need no model: tau2's tasks hold the user's wishes
        environment = replace(environment, user=UserSettings(kind="scripted"))
    tasks = load_tasks(environment.domain, split, solo_mode=environment.solo_mode)
    made: list[Any] = []
    while len(made) < settings.demonstrations:
        made += generate_demonstrations(
            environment,
            tasks,
            min(DEMONSTRATIONS_AT_A_TIME, settings.demonstrations - len(made)),
            seed=settings.seed * 1_000_003 + len(made),
            skip=settings.skip,
            skip_by_skill=dict.fromkeys(settings.weak_skills, settings.weak_skip),
            require_reward=settings.require_reward,
        )
        if len(made) % (5 * DEMONSTRATIONS_AT_A_TIME) == 0 or len(made) == settings.demonstrations:
            reward = sum(demonstration.reward for demonstration in made) / len(made)
            progress.print(
                f"warm start: {len(made)}/{settings.demonstrations} demonstrations played, mean reward {reward:.3f}",
                highlight=False,
            )
    facts = {
        "demonstrations": len(made),
        "mean_reward": sum(demonstration.reward for demonstration in made) / len(made),
        "officially_scored": sum(demonstration.official for demonstration in made),
    }
    return [TextDialogue(demonstration.messages, demonstration.tools) for demonstration in made], facts
