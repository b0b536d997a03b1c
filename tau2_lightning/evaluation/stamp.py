"""The stamp of an evaluation: everything besides the agent that decides its score. Other stamps, other scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tau2_lightning.environment import EnvironmentSettings, TaskRef
from tau2_lightning.environment import identity as world

from .revision import revision

NONE = "-"


@dataclass(frozen=True)
class EvaluationStamp:
    """What a score is of. Two scores are comparable when their stamps are equal.

    ``tau2`` is the distribution and its version. ``tasks`` is a digest of the whole contents of the ``n_tasks`` tasks;
    ``policy`` names the rules in the prompt with a digest of their text, ``tools`` is a digest of the tools' schemas.
    ``reward_basis`` counts the tasks by what their reward is made of; ``judge`` is the model that scores assertions in
    natural language. ``user`` is the user's name, ``user_prompt`` a digest of its prompt (of the scripted user: of its
    program), ``user_args`` its sampling arguments. ``settings`` holds every other setting that can change a score.
    ``revision`` is this program's. ``chat_template`` is a digest of the template that makes the prompts; ``-`` where no
    prompt is meant, as for training tasks. How the agent samples belongs to the agent and is not in the stamp.
    """

    tau2: str
    domain: str
    split: str
    n_tasks: int
    tasks: str
    policy: str
    tools: str
    reward_basis: str
    judge: str
    user: str
    user_prompt: str
    user_args: str
    solo_mode: bool
    max_steps: int
    max_errors: int
    add_thinking_tool: bool
    settings: str
    revision: str
    chat_template: str = NONE

    @classmethod
    def of(
        cls,
        settings: EnvironmentSettings,
        split: str,
        tasks: Sequence[TaskRef],
        user: str = "",
        chat_template: str = NONE,
    ) -> EvaluationStamp:
        """The stamp of an evaluation of ``tasks``, which are of ``split``, under ``settings``.

        ``user`` names the user that played, where the settings leave its name to its server. Imports tau2.
        """
        fixed = tuple(tasks)
        basis = world.reward_basis(fixed, settings)
        return cls(
            tau2=world.tau2_version(),
            domain=settings.domain,
            split=split,
            n_tasks=len(fixed),
            tasks=world.tasks_digest(fixed),
            policy=world.policy_text(settings),
            tools=world.tools_digest(settings),
            reward_basis=basis,
            judge=world.judge(settings) if "NL_ASSERTION" in basis else "none",
            user=user or settings.user.name,
            user_prompt=world.user_prompt(settings),
            user_args=world.user_sampling(settings.user),
            solo_mode=settings.solo_mode,
            max_steps=settings.max_steps,
            max_errors=settings.max_errors,
            add_thinking_tool=settings.add_thinking_tool,
            settings=world.other_settings(settings),
            revision=revision(),
            chat_template=chat_template,
        )

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits: equal stamps have equal ones, others different ones."""
        return world.digest(asdict(self))

    def payload(self) -> dict[str, Any]:
        """The stamp and its digest as JSON-able data."""
        return {**asdict(self), "digest": self.digest}

    def line(self) -> str:
        """The stamp in one line of a table."""
        return (
            f"{self.digest}: {self.tau2}, {self.n_tasks} tasks {self.tasks}, policy {self.policy}, "
            f"chat template {self.chat_template}, "
            f"reward {self.reward_basis}, judge {self.judge}, "
            f"user {' '.join(filter(None, (self.user, self.user_prompt, self.user_args)))}, "
            f"settings {self.settings}, revision {self.revision}"
        )


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The fields in which two stamps differ, as they were saved (`EvaluationStamp.payload`): ``name: this or that``.

    A field that only one of them has, as from another version of this program, counts as different.
    """
    names = [field.name for field in fields(EvaluationStamp)]
    names += sorted((one.keys() | other.keys()) - {*names, "digest"})
    pairs = [(name, one.get(name, NONE), other.get(name, NONE)) for name in names]
    return [f"{name}: {here} or {there}" for name, here, there in pairs if here != there]
