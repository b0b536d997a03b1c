"""Agent workflows: the interface that plays one episode, and loading a user's class by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
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


def load_workflow(config: Mapping[str, Any], key: str = "rollout.workflow") -> AgentWorkflow:
    """Instantiate ``{"_target_": "package.module.Class", **arguments}``. Raises ConfigError naming ``key``."""
    target = config.get("_target_")
    if not isinstance(target, str) or "." not in target:
        raise _wrong(key, target, "names no class", "Give _target_: package.module.Class.")
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise _wrong(
            key, target, f"cannot be imported: {error}", "Check the spelling and that it is installed."
        ) from error
    try:
        workflow = cls(**{k: v for k, v in config.items() if k != "_target_"})
    except TypeError as error:
        raise _wrong(key, target, f"does not take these arguments: {error}", "See the class.") from error
    if not isinstance(workflow, AgentWorkflow):
        raise _wrong(key, target, "has no run method", "It needs async run(data, *, base_url, api_key, http_client).")
    return workflow


def _wrong(key: str, value: object, problem: str, remedy: str) -> ConfigError:
    return ConfigError([Violation(f"{key}._target_", value, problem, remedy)])
