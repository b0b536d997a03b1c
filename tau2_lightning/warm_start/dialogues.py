"""The dialogues that a warm start imitates: read from a file, or played by tau2's demonstrators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.policy.dialogues import TextDialogue

from .required import required_reward
from .sources import dialogues_of_data

if TYPE_CHECKING:
    from tau2_lightning.environment import Demonstration

DEMONSTRATIONS_AT_A_TIME = 200  # between two lines of progress


def training_dialogues(config: RunConfig, progress: Console) -> tuple[list[TextDialogue], dict[str, Any]]:
    """The dialogues of ``warm_start.data``, or demonstrations played on the training tasks; and facts about them.

    Domains share the demonstrations by their weights, and follow each other in the order in which their tasks are
    drawn. Raises ConfigError when data cannot be read or used.
    """
    if config.warm_start.data is not None:
        return dialogues_of_data(config, progress)
    from tau2_lightning.environment.shares import turns

    order = list(islice(turns(config.weights), config.warm_start.demonstrations))
    counts = Counter(order)
    left_out: dict[str, dict[str, int]] = {}
    queues: dict[str, Iterator[Demonstration]] = {}
    for name, view in config.by_domain.items():
        played, reasons = _played(view, counts[name], progress)
        queues[name] = iter(played)
        if reasons:
            left_out[name] = reasons
    made = [next(queues[name]) for name in order]
    facts: dict[str, Any] = {
        "demonstrations": len(made),
        "mean_reward": sum(demonstration.reward for demonstration in made) / len(made),
        "officially_scored": sum(demonstration.official for demonstration in made),
    }
    if len(queues) > 1:
        facts["domains"] = dict(counts)
    if left_out:
        facts["tasks_left_out"] = left_out
    return [TextDialogue(one.messages, one.tools, task=one.task_id) for one in made], facts


def _played(config: RunConfig, count: int, progress: Console) -> tuple[list[Demonstration], dict[str, int]]:
    """``count`` demonstrations on the training tasks of one domain's configuration, and how many of the tasks that were
    drawn no honest agent can play, by reason.
    """
    from tau2_lightning.environment import Playable, UserSettings, generate_demonstrations, load_tasks
    from tau2_lightning.environment.settings import environment_settings

    settings, environment = config.warm_start, environment_settings(config.econfig)
    if environment.user.kind == "llm":  # demonstrations need no model: tau2's tasks hold the user's wishes
        environment = replace(environment, user=UserSettings(kind="scripted"))
    tasks = load_tasks(environment.domain, config.train_dataset.split, solo_mode=environment.solo_mode)
    playable = Playable(environment)
    made: list[Demonstration] = []
    while len(made) < count:
        made += generate_demonstrations(
            environment,
            tasks,
            min(DEMONSTRATIONS_AT_A_TIME, count - len(made)),
            seed=settings.seed * 1_000_003 + len(made),
            skip=settings.skip,
            skip_by_skill=dict.fromkeys(settings.weak_skills, settings.weak_skip),
            require_reward=required_reward(config),
            playable=playable,
        )
        if len(made) % (5 * DEMONSTRATIONS_AT_A_TIME) == 0 or len(made) == count:
            reward = sum(demonstration.reward for demonstration in made) / len(made)
            progress.print(
                f"warm start: {len(made)}/{count} demonstrations of {environment.domain} played, "
                f"mean reward {reward:.3f}",
                highlight=False,
            )
    reasons = dict(Counter(playable.left_out.values()).most_common())
    for reason, number in reasons.items():
        tasks_of = f"{number} of {len(tasks)} tasks of {environment.domain}"
        progress.print(f"warm start: {tasks_of} are not demonstrated: {reason}", highlight=False)
    return made, reasons
