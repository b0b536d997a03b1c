"""Which simulations of tau2's results files are learned from, and why the others are not (rejection sampling)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import AgentsViews, UnusableSimulation, has_other_rules, load_tasks, was_solo
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.policy.dialogues import TextDialogue

_KEY = "warm_start.data"


class _Domain:
    """What is taken of one domain, by its configuration."""

    def __init__(self, view: RunConfig) -> None:
        self.view, self.settings = view, environment_settings(view.econfig)
        self.views = AgentsViews(self.settings)

    @cached_property
    def training(self) -> frozenset[str]:
        """The tasks that may be learned from."""
        return self._tasks(self.view.train_dataset.split)

    @cached_property
    def held_out(self) -> frozenset[str]:
        """The tasks that validations score."""
        return self._tasks(self.view.valid_dataset.split) - self.training

    def _tasks(self, split: str) -> frozenset[str]:
        # Solo or not: whether a task can be played is not the question here.
        return frozenset(task.task_id for task in load_tasks(self.settings.domain, split))


class Selection:
    """Takes the simulations with at least ``warm_start.min_reward``, each once, of tasks of ``train_dataset.split``.

    Tasks of ``valid_dataset.split`` and all others are left out unless ``warm_start.accept_held_out_tasks`` is set: a
    score on a task that the policy has learned says nothing. ``seen`` and ``taken`` count simulations, ``left_out``
    counts the others by reason. Prompts and tools are those of a training rollout under ``config``.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config, self._settings = config, config.warm_start
        self._domains = {name: _Domain(view) for name, view in config.by_domain.items()}
        self._known: set[bytes] = set()
        self._other_rules: list[str] = []
        self.seen = self.taken = 0
        self.left_out: Counter[str] = Counter()

    def take(self, file: Path, results: Mapping[str, Any]) -> list[TextDialogue]:
        """The dialogues of one results file. Raises ConfigError when it is of another domain or mode, or malformed."""
        info = results["info"]
        domain = self._domain_of(file, info)
        if has_other_rules(info, domain.settings):
            self._other_rules.append(file.name)
        taken = []
        for number, simulation in enumerate(results["simulations"]):
            self.seen += 1
            try:
                taken.append(self._dialogue(domain, simulation))
            except UnusableSimulation as reason:
                self.left_out[str(reason)] += 1
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                problem = f"simulation {number + 1} is malformed ({type(error).__name__}: {error})"
                remedy = "Give a file that tau2 or this project has written"
                raise ConfigError([Violation(_KEY, str(file), problem, remedy)]) from error
        self.taken += len(taken)
        return taken

    def lines(self) -> Iterator[str]:
        """What to tell the user: the counts, and what may surprise."""
        yield f"{self.taken} of {self.seen} simulations are learned from{self._reasons()}"
        if self._other_rules:
            files = ", ".join(self._other_rules)
            yield f"{files}: played under another policy text than the installed tau2 has, which the prompts now hold"

    def nothing_left(self) -> Violation:
        """The error when no simulation is taken."""
        remedy = "Lower warm_start.min_reward, or play more trials: valid_dataset.num_trials with mode=validate"
        if any("train_dataset.split" in reason for reason in self.left_out):
            remedy = (
                "Play the training tasks: mode=validate valid_dataset.split=train. Only if no score on these tasks is "
                "wanted any more: warm_start.accept_held_out_tasks=true"
            )
        problem = f"of {self.seen} simulations none is left to learn from{self._reasons()}"
        return Violation(_KEY, list(self._settings.sources), problem, remedy)

    def _reasons(self) -> str:
        counts = ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
        return f"; left out: {counts}" if counts else ""

    def _domain_of(self, file: Path, info: Mapping[str, Any]) -> _Domain:
        name = str((info.get("environment_info") or {}).get("domain_name"))
        domain = self._domains.get(name)
        if domain is None:
            here = ", ".join(self._domains)
            raise ConfigError(
                [Violation(_KEY, str(file), f"is of the domain {name}, not {here}", f"Set domain={name}")]
            )
        solo, wanted = was_solo(info), bool(domain.settings.solo_mode)
        if solo != wanted:
            modes = {True: "solo mode", False: "dialogues with a user"}
            problem, remedy = f"holds {modes[solo]}, not {modes[wanted]}", f"Set econfig.solo_mode={str(solo).lower()}"
            raise ConfigError([Violation(_KEY, str(file), problem, remedy)])
        return domain

    def _dialogue(self, domain: _Domain, simulation: Mapping[str, Any]) -> TextDialogue:
        """The dialogue of a simulation that is taken. Raises UnusableSimulation with the reason for another."""
        reward = (simulation.get("reward_info") or {}).get("reward")
        if reward is None:
            raise UnusableSimulation("without a reward")
        if float(reward) < self._settings.min_reward - 1e-9:
            raise UnusableSimulation(f"with a reward below {self._settings.min_reward:g}")
        task = str(simulation["task_id"])
        if task not in domain.training and not self._settings.accept_held_out_tasks:
            train, valid = domain.view.train_dataset.split, domain.view.valid_dataset.split
            if task in domain.held_out:
                where = f"valid_dataset.split={valid}, not in train_dataset.split={train}"
                raise UnusableSimulation(f"of tasks held out for scores ({where})")
            raise UnusableSimulation(f"of tasks that are not in train_dataset.split={train}")
        view = domain.views.of(simulation)
        said = _digest(view.messages)
        if said in self._known:
            raise UnusableSimulation("said before, word for word")
        self._known.add(said)
        return TextDialogue(view.messages, view.tools, given=view.given, task=task)


def _digest(messages: list[dict[str, Any]]) -> bytes:
    """What is said and done in a dialogue, whatever the ids of its calls."""
    content = [
        [
            m["role"],
            m.get("content"),
            m.get("reasoning_content"),
            [call["function"] for call in m.get("tool_calls", ())],
        ]
        for m in messages
    ]
    return hashlib.sha256(json.dumps(content).encode()).digest()
