"""Environments from a blueprint: built once by tau2's own constructor, then copied cheaply for each episode.

Retail, airline and telecom share the agent's records copy-on-write. The user's data, and the small databases of mock
and banking_knowledge, are copied whole; indexes of a knowledge base are shared. An environment that allows neither is
constructed anew each time. So a user's own domain is always correct and, if its database is built like tau2's, fast.
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
from .knowledge import constructor_arguments, depends_on_task, fit_to_task, policy_of, search_indexes
from .settings import Retrieval
from .shortcuts import answer_quickly, find_tools_directly, lend_to_readers, lend_to_sync

_LOCK = threading.RLock()
_BLUEPRINTS: dict[tuple[str, bool, Retrieval], Blueprint] = {}
_ANY = Retrieval()
THINK = "think"
# Allocations between collections of garbage. Python's own 700 are two or three episodes' worth.
GC_THRESHOLD = 20_000


def blueprint(domain: str, solo_mode: bool, retrieval: Retrieval = _ANY) -> Blueprint:
    """The shared blueprint of a domain in one mode, with one way to find documents; built at most once."""
    key = (domain, solo_mode, retrieval)
    with _LOCK:
        if key not in _BLUEPRINTS:
            _BLUEPRINTS[key] = Blueprint(domain, solo_mode, retrieval)
        return _BLUEPRINTS[key]


def stock_environment(domain: str, solo_mode: bool, retrieval: Retrieval = _ANY, task: Any | None = None) -> Any:
    """tau2's own environment, which shares nothing. Domains without solo mode may lack the parameter.

    Where environments depend on the task, as in a domain with a knowledge base, it is one of ``task``.
    """
    arguments = constructor_arguments(domain, retrieval, task)
    if solo_mode:
        arguments["solo_mode"] = True
    return api.registry.get_env_constructor(domain)(**arguments)


class Blueprint:
    """One domain in one mode: makes environments, and holds what all episodes share.

    ``policy`` is the policy of environments that are made for no task.
    """

    def __init__(self, domain: str, solo_mode: bool, retrieval: Retrieval = _ANY) -> None:
        self.domain, self.solo_mode, self.retrieval = domain, solo_mode, retrieval
        self._prototype = stock_environment(domain, solo_mode, retrieval)
        self._per_task = depends_on_task(self._prototype)
        self.policy: str = self._prototype.get_policy()
        self._facts: dict[str, Any] = {}
        self._indexes = search_indexes(self._prototype.tools)
        self.shared, self._database, self._copier = self._plan()
        shared = self.shared.fields.values() if self.shared is not None else ()
        self._answers = Answers(shared) if self._answers_as_tau2_does() else None
        _collect_less_often()

    def environment(self, task: Any | None = None) -> Any:
        """A fresh environment in the initial state of the domain, independent of every other; see `stock_environment`
        for ``task``.
        """
        if self._copier is None:
            return stock_environment(self.domain, self.solo_mode, self.retrieval, task)
        environment = self._copier()
        environment.policy = self.policy
        if self._indexes:
            vars(environment.tools).update(self._indexes)
        if self._database is not None:
            environment.tools.db = environment.user_tools.db = self._database()
        if task is not None and self._per_task:
            fit_to_task(environment, self.retrieval, task)
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

    @property
    def one_database(self) -> bool:
        """Whether agent and user have one database, so that its hash is both's."""
        toolkits = (type(self._prototype.tools), type(self._prototype.user_tools))
        return self._database is not None and all(
            getattr(cls, "get_db_hash", None) is api.ToolKitBase.get_db_hash for cls in toolkits
        )

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

    def policy_for(self, task: Any) -> str:
        """The agent's policy in episodes of ``task``."""
        return policy_of(self.retrieval, task, self.policy) if self._per_task else self.policy

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
        return {name: kit.tool_type(name) for kit in toolkits if kit is not None for name in kit.get_tools()}

    @cached_property
    def _schemas(self) -> list[dict[str, Any]]:
        tools = [*self.agent_tools, self.stop_tool] if self.solo_mode else list(self.agent_tools)
        return [tool.openai_schema for tool in tools]

    @cached_property
    def _thinking_schemas(self) -> list[dict[str, Any]]:
        return [*self._schemas, api.as_tool(api.GenericToolKit(None).think).openai_schema]

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

    def _plan(self) -> tuple[SharedDatabase | None, Copier | None, Copier | None]:
        """The shared part of the agent's database, if it can be shared; a copier of a database that agent and user
        have in common; and a copier of the rest. Without the last, each environment is built anew.
        """
        bare = copy.copy(self._prototype)
        bare.policy = ""
        shared = self._share_records()
        try:
            database = self._database_of_both()
            if shared is not None or database is not None or self._indexes:
                bare.tools = copy.copy(bare.tools)
                vars(bare.tools).update(dict.fromkeys(self._indexes))
            if shared is not None or database is not None:
                bare.tools.db = None
            if database is not None:
                bare.user_tools = copy.copy(bare.user_tools)
                bare.user_tools.db = None
            return shared, database, snapshot(bare)
        except (pickle.PicklingError, AttributeError, TypeError):
            # A toolkit that holds a lambda, a lock or a class made in a function.
            return None, None, None

    def _database_of_both(self) -> Copier | None:
        """A copier of the database that is the agent's and the user's, as in banking_knowledge; None without one."""
        agents, users = self._prototype.tools, self._prototype.user_tools
        common = getattr(agents, "db", None)
        return snapshot(common) if common is not None and common is getattr(users, "db", None) else None

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
        return all(inherits)


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
