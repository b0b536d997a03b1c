"""Agent workflows: the interface that plays one episode, and loading a user's class by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module  # noqa: TID251  # of a class that the user names
from inspect import Parameter, iscoroutinefunction, signature
from typing import Any, Protocol, runtime_checkable

import httpx

from tau2_lightning.errors import ConfigError, Violation

from .client import PolicyClient


@dataclass(frozen=True)
class Access:
    """How the agents of a run's episodes reach the policy.

    ``base_url`` and ``http_client`` are for any OpenAI client; ``client`` makes a PolicyClient of a session's key.
    """

    base_url: str
    http_client: httpx.AsyncClient
    client: Callable[[str], PolicyClient]


@runtime_checkable
class AgentWorkflow(Protocol):
    """One episode of an agent.

    A class that only knows an OpenAI base URL trains without a change.
    """

    async def run(
        self,
        data: Mapping[str, Any],
        *,
        base_url: str,
        api_key: str,
        http_client: httpx.AsyncClient,
        client: PolicyClient,
        **kwargs: Any,
    ) -> float | Mapping[str, Any]:
        """Play the episode ``data``, a row of the dataset.

        ``data`` holds ``task`` (a TaskRef), ``task_id``, ``domain``, ``split``, ``econfig`` (see `data.task_data`),
        ``seed``, and ``sampling``: fields that the proxy puts in the place of the agent's own in a validation.

        ``base_url`` and ``api_key`` open a recorded session: the policy learns from what any OpenAI client samples
        there. ``http_client`` may be handed to ``openai.AsyncOpenAI``. ``client`` is a cheaper client of that session;
        a class gets it when its ``run`` has such a parameter or ``**kwargs``. The answer is the final reward; or
        ``{completion id: reward}``; or a mapping with ``reward``, ``turn_rewards`` ``{completion id: reward}`` (one of
        the two may be left out) and optionally ``outcome``, an EpisodeOutcome: without it a validation reports rewards
        and pass^k, but no turns, errors or transfers. A reward is one finite number (`session.rewards.as_reward`).

        Raise InfrastructureFault for any failure that the agent did not cause: the episode is played again. Any other
        exception excludes the episode, counted by its type.
        """
        ...


def takes_client(workflow: AgentWorkflow) -> bool:
    """Whether ``workflow.run`` accepts the keyword ``client``: classes that only know an OpenAI URL need not."""
    parameters = signature(workflow.run).parameters.values()
    return any(one.name == "client" or one.kind is Parameter.VAR_KEYWORD for one in parameters)


def load_workflow(config: Mapping[str, Any]) -> AgentWorkflow:
    """Instantiate ``{"_target_": "package.module.Class", **arguments}``. Raises ConfigError as `check_workflow` finds,
    and when the constructor raises."""
    cls = _workflow_class(config)
    try:
        workflow: AgentWorkflow = cls(**_arguments(config))
    except Exception as error:
        problem = f"cannot be made: {type(error).__name__}: {error}"
        raise ConfigError([_wrong(config.get("_target_"), problem, "See the class")]) from error
    return workflow


def check_workflow(config: Mapping[str, Any]) -> list[Violation]:
    """What is wrong with ``{"_target_": "package.module.Class", **arguments}``. The class is imported, and not
    called."""
    try:
        _workflow_class(config)
    except ConfigError as error:
        return list(error.violations)
    return []


def _workflow_class(config: Mapping[str, Any]) -> type[Any]:
    """The class that ``_target_`` names: a class with an async method ``run``, which takes the arguments. Whatever else
    a name may lead to, ``os.system`` among it, is refused before it is called."""
    target = config.get("_target_")
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() and part != "__main__" for part in parts):
        raise ConfigError([_wrong(target, "names no class", "Give _target_: package.module.Class")])
    *module, name = parts
    try:
        cls = getattr(import_module(".".join(module)), name)
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything
        problem = f"cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError([_wrong(target, problem, "Check the spelling and that it is installed")]) from error
    run = getattr(cls, "run", None)
    if not isinstance(cls, type) or not iscoroutinefunction(run):
        needed = "Name a class with async run(data, *, base_url, api_key, http_client)"
        raise ConfigError([_wrong(target, "is no class with an async run method", needed)])
    try:
        signature(cls).bind(**_arguments(config))
    except (TypeError, ValueError) as error:
        raise ConfigError([_wrong(target, f"does not take these arguments: {error}", "See the class")]) from error
    return cls


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in config.items() if name != "_target_"}


def _wrong(value: object, problem: str, remedy: str) -> Violation:
    return Violation("rollout.workflow._target_", value, problem, remedy)
