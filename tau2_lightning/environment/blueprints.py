"""Environments from a blueprint: built once by tau2's own constructor, then copied cheaply for each episode.

Retail, airline and telecom share the agent's records copy-on-write. The user's data, and mock, whose database is small,
are copied whole. An environment that allows neither is constructed anew each time. So a user's own domain is always
correct and, if its database is built like tau2's, also fast.
"""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

from tau2_lightning.errors import SharedStateChanged

from . import tau2_api as api
from .databases.cloning import Copier, apart, snapshot
from .databases.copy_on_write import SharedDatabase
from .databases.records import Answers, Lending
from .shortcuts import answer_quickly, find_tools_directly, lend_to_readers, lend_to_sync

_LOCK = threading.RLock()
_BLUEPRINTS: dict[tuple[str, bool], Blueprint] = {}
THINK = "think"
# Allocations between collections of garbage. Python's own 700 are two or three episodes' worth.
GC_THRESHOLD = 20_000


def blueprint(domain: str, solo_mode: bool) -> Blueprint:
    """The shared blueprint of a domain in one mode; built at most once."""
    key = (domain, solo_mode)
    with _LOCK:
        if key not in _BLUEPRINTS:
            _BLUEPRINTS[key] = Blueprint(domain, solo_mode)
        return _BLUEPRINTS[key]


def stock_environment(domain: str, solo_mode: bool) -> Any:
    """tau2's own environment, which shares nothing. Domains without solo mode may lack the parameter."""
    constructor = api.registry.get_env_constructor(domain)
    return constructor(solo_mode=True) if solo_mode else constructor()


class Blueprint:
    """One domain in one mode: makes environments, and holds what all episodes share."""

    def __init__(self, domain: str, solo_mode: bool) -> None:
        self.domain, self.solo_mode = domain, solo_mode
        self._prototype = stock_environment(domain, solo_mode)
        self.policy: str = self._prototype.get_policy()
        self._facts: dict[str, Any] = {}
        self.shared, self._copier = self._plan()
        shared = self.shared.fields.values() if self.shared is not None else ()
        self._answers = Answers(shared) if self._answers_as_tau2_does() else None
        _collect_less_often()

    def environment(self) -> Any:
        """A fresh environment in the initial state of the domain, independent of every other."""
        if self._copier is None:
            return stock_environment(self.domain, self.solo_mode)
        environment = self._copier()
        environment.policy = self.policy
        for toolkit in (environment.tools, environment.user_tools):
            find_tools_directly(toolkit)
        if self.shared is not None:
            lending = Lending()
            environment.tools.db = self.shared.open(lending)
            lend_to_readers(environment.tools, lending)
            if api.has_telecoms_sync(environment):
                environment.sync_tools = lend_to_sync(environment, lending)
        if self._answers is not None:
            environment.get_response = answer_quickly(environment, self._answers)
        return environment

    @cached_property
    def agent_tools(self) -> tuple[Any, ...]:
        """The Tool objects offered to the agent, in tau2's order; for their descriptions only, never called."""
        tools = self._prototype.get_tools()
        return tuple(tools + self.user_tools_list) if self.solo_mode else tuple(tools)

    @cached_property
    def user_tools(self) -> tuple[Any, ...] | None:
        """The user's Tool objects, or None where the user has none in this domain."""
        return tuple(self._prototype.get_user_tools()) if self._prototype.user_tools is not None else None

    @property
    def user_tools_list(self) -> list[Any]:
        """The user's Tool objects in a new list, empty where the user has none."""
        return list(self.user_tools or ())

    @cached_property
    def stop_tool(self) -> Any:
        """The ``done`` tool that tau2's solo agent adds to its tools."""
        maker = _StopToolMaker()
        maker.add_stop_tool()
        return maker.tools[-1]

    def tool_schemas(self, thinking: bool) -> list[dict[str, Any]]:
        """OpenAI schemas of the agent's tools: one shared list object per mode. Never change it."""
        return self._thinking_schemas if thinking else self._schemas

    @cached_property
    def tool_names(self) -> frozenset[str]:
        """Names of the tools that the agent may call."""
        return frozenset(schema["function"]["name"] for schema in self._schemas)

    @cached_property
    def tool_types(self) -> dict[str, Any]:
        """tau2's ToolType of every tool, the agent's and the user's, by name."""
        toolkits = (self._prototype.tools, self._prototype.user_tools)
        return {name: kit.tool_type(name) for kit in toolkits if kit is not None for name in kit.tools}

    @cached_property
    def _schemas(self) -> list[dict[str, Any]]:
        tools = [*self.agent_tools, self.stop_tool] if self.solo_mode else list(self.agent_tools)
        return [tool.openai_schema for tool in tools]

    @cached_property
    def _thinking_schemas(self) -> list[dict[str, Any]]:
        from tau2.environment.toolkit import GenericToolKit

        return [*self._schemas, api.as_tool(GenericToolKit(None).think).openai_schema]

    def info(self) -> Any:
        """tau2's EnvironmentInfo, without the tools."""
        return self._prototype.get_info()

    def once(self, key: str, compute: Callable[[Any], Any]) -> Any:
        """``compute(a fresh environment)``, cached under ``key``: for facts about the initial state."""
        if key not in self._facts:
            self._facts[key] = compute(self.environment())
        return self._facts[key]

    def verify_pristine(self) -> None:
        """Raise SharedStateChanged when an episode has changed the shared records, which makes later episodes wrong."""
        if self.shared is not None and self.shared.computed_digest() != self.shared.digest:
            remedy = "A tool changes records although it is declared read-only, or bypasses the database's own methods"
            raise SharedStateChanged(f"the pristine {self.domain} database has changed. {remedy}")

    def _plan(self) -> tuple[SharedDatabase | None, Copier | None]:
        """The shared part of the agent's database, if it can be shared, and a copier of the rest. Without a copier
        each environment is built anew.
        """
        bare = copy.copy(self._prototype)
        bare.policy = ""
        shared = self._share_records()
        if shared is not None:
            bare.tools = copy.copy(bare.tools)
            bare.tools.db = None
        try:
            return shared, snapshot(bare)
        except (pickle.PicklingError, AttributeError, TypeError):
            # A toolkit that holds a lambda, a lock or a class made in a function.
            return None, None

    def _share_records(self) -> SharedDatabase | None:
        environment, agents = self._prototype, self._prototype.tools
        if set(vars(environment)) != {"domain_name", "policy", "tools", "user_tools", "solo_mode"} or agents is None:
            return None
        others = [environment.user_tools, *(value for name, value in vars(agents).items() if name != "db")]
        # The walk over airline's whole database takes long, and airline has nothing else beside it.
        if any(other is not None for other in others) and not apart(agents.db, *others):
            return None
        return SharedDatabase.of(agents.db)

    def _answers_as_tau2_does(self) -> bool:
        """Whether environments of this domain inherit the methods that `answer_quickly` replaces."""
        inherits = [
            inspect.getattr_static(type(self._prototype), name) is inspect.getattr_static(api.Environment, name)
            for name in ("get_response", "to_json_str")
        ]
        return all(inherits) and not api.IS_UPSTREAM


def _collect_less_often() -> None:
    """Raise Python's threshold of garbage collection to ``GC_THRESHOLD``, unless another one was chosen.

    Episodes are freed without the collector, and many simultaneous ones trigger it two to three times as often as one.
    32 simultaneous episodes play 1.00 (airline) and .99 (retail) times as fast as one at a time, with Python's
    threshold .97 and .96; the aim is 1.
    """
    first, *others = gc.get_threshold()
    if 0 < first < GC_THRESHOLD:  # 0: other code has switched the collector off
        gc.set_threshold(GC_THRESHOLD, *others)


class _StopToolMaker(api.LLMSoloAgent):
    """Makes the stop tool of tau2's solo agent without the rest of an agent."""

    def __init__(self) -> None:
        self.tools: list[Any] = []
