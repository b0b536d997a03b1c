"""Environments from a blueprint: built once by tau2's own constructor, then copied cheaply for each episode.

Retail, airline and telecom share the agent's records copy-on-write; what the user has, and mock, whose database is
small, are copied whole. An environment that can be neither is constructed anew each time, so a domain of the user's own
is always right and, if its database is built like tau2's, also fast.
"""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tau2_lightning.environment.databases.cloning import Copier, apart, snapshot
from tau2_lightning.environment.databases.copy_on_write import SharedDatabase
from tau2_lightning.environment.databases.records import Answers, Lending
from tau2_lightning.errors import SharedStateChanged

from . import tau2_api as api

_LOCK = threading.RLock()
_BLUEPRINTS: dict[tuple[str, bool], Blueprint] = {}
THINK = "think"
# New objects until Python looks for garbage; its own 700 are two or three episodes' worth.
GC_THRESHOLD = 20_000


def blueprint(domain: str, solo_mode: bool) -> Blueprint:
    """The shared blueprint of a domain in one mode; built at most once."""
    key = (domain, solo_mode)
    with _LOCK:
        if key not in _BLUEPRINTS:
            _BLUEPRINTS[key] = Blueprint(domain, solo_mode)
        return _BLUEPRINTS[key]


def stock_environment(domain: str, solo_mode: bool) -> Any:
    """tau2's own, unshared environment. Domains without solo mode may not know the parameter."""
    constructor = api.registry.get_env_constructor(domain)
    return constructor(solo_mode=True) if solo_mode else constructor()


class Blueprint:
    """One domain in one mode: makes environments, and holds what never changes between episodes."""

    def __init__(self, domain: str, solo_mode: bool) -> None:
        self.domain, self.solo_mode = domain, solo_mode
        self._prototype = stock_environment(domain, solo_mode)
        self.policy: str = self._prototype.get_policy()
        self._facts: dict[str, Any] = {}
        self.shared, self._copier = self._plan()
        shared = self.shared.fields.values() if self.shared is not None else ()
        self._answers = Answers(shared) if self._answers_as_tau2_does() else None
        _spare_the_collector()

    def environment(self) -> Any:
        """A fresh environment in the initial state of the domain, independent of every other."""
        if self._copier is None:
            return stock_environment(self.domain, self.solo_mode)
        environment = self._copier()
        environment.policy = self.policy
        for toolkit in (environment.tools, environment.user_tools):
            _find_directly(toolkit)
        if self.shared is not None:
            lending = Lending()
            environment.tools.db = self.shared.open(lending)
            _lend_to_readers(environment.tools, lending)
            if api.has_telecoms_sync(environment):
                environment.sync_tools = _reading_sync(environment, lending)
        if self._answers is not None:
            environment.get_response = _quick_responses(environment, self._answers)
        return environment

    @cached_property
    def agent_tools(self) -> tuple[Any, ...]:
        """The Tool objects the agent is told of, as tau2 orders them; for describing only, never called."""
        tools = self._prototype.get_tools()
        return tuple(tools + self.user_tools_list) if self.solo_mode else tuple(tools)

    @cached_property
    def user_tools(self) -> tuple[Any, ...] | None:
        """The user's Tool objects, or None where the domain gives the user none."""
        return tuple(self._prototype.get_user_tools()) if self._prototype.user_tools is not None else None

    @property
    def user_tools_list(self) -> list[Any]:
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

    @cached_property
    def user_schemas(self) -> list[dict[str, Any]] | None:
        """OpenAI schemas of the user's tools, shared; None without tools."""
        return [tool.openai_schema for tool in self.user_tools] if self.user_tools is not None else None

    def info(self) -> Any:
        """tau2's EnvironmentInfo, without the tools."""
        return self._prototype.get_info()

    def once(self, key: str, compute: Callable[[Any], Any]) -> Any:
        """``compute(a fresh environment)``, remembered under ``key``: for facts of the initial state."""
        if key not in self._facts:
            self._facts[key] = compute(self.environment())
        return self._facts[key]

    def verify_pristine(self) -> None:
        """Raise SharedStateChanged when an episode has changed the shared records: later episodes would be wrong."""
        if self.shared is not None and self.shared.computed_digest() != self.shared.digest:
            remedy = "Some tool changes records that it says it only reads, or goes around the database's own methods"
            raise SharedStateChanged(f"the pristine {self.domain} database has changed. {remedy}")

    def _plan(self) -> tuple[SharedDatabase | None, Copier | None]:
        """What of the agent's database is shared, if that can be, and how to copy what is not. Neither: build anew."""
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
        # A walk over all that airline has takes a while, and it has nothing else.
        if any(other is not None for other in others) and not apart(agents.db, *others):
            return None
        return SharedDatabase.of(agents.db)

    def _answers_as_tau2_does(self) -> bool:
        """Whether environments of this domain inherit what `_quick_responses` stands for."""
        inherits = [
            inspect.getattr_static(type(self._prototype), name) is inspect.getattr_static(api.Environment, name)
            for name in ("get_response", "to_json_str")
        ]
        return all(inherits) and not api.IS_UPSTREAM


def _spare_the_collector() -> None:
    """Keep what was just built, which lives as long as the process, and episodes out of garbage collections.

    Airline's 300,000 objects would be walked by every full one, which costs more than an episode. Episodes are freed
    without it, and many at once would set it off two to three times as often as one, for nothing.
    """
    gc.collect()
    gc.freeze()
    first, *others = gc.get_threshold()
    if 0 < first < GC_THRESHOLD:  # 0: switched off, by someone else
        gc.set_threshold(GC_THRESHOLD, *others)


# What episodes' environments are given below refers to them weakly: with a cycle in it, an environment would be there
# until the garbage collector comes by, and many at once would lie in the way of those that play.


def _quick_responses(environment: Any, answers: Answers) -> Callable[[Any], Any]:
    """tau2's ``Environment.get_response`` without the debug line, which spells out every result for nobody, and
    without spelling out a shared record anew each time that a tool returns it."""
    reach: Callable[[], Any] = weakref.ref(environment)

    def get_response(message: Any) -> Any:
        environment, error = reach(), False
        try:
            result = environment.make_tool_call(message.name, requestor=message.requestor, **message.arguments)
            environment.sync_tools()
        except Exception as problem:  # noqa: BLE001 - as tau2: whatever a tool raises is the answer to its caller
            result, error = f"Error: {problem}", True
        content = answers.text(result, environment.to_json_str)
        return api.ToolMessage(id=message.id, content=content, requestor=message.requestor, role="tool", error=error)

    return get_response


def _find_directly(toolkit: Any) -> None:
    """Let ``toolkit`` look one tool up. tau2's own ``use_tool`` and ``has_tool`` bind all of them to find one."""
    cls, base = type(toolkit), api.ToolKitBase
    own = any(getattr(cls, name, None) is not getattr(base, name) for name in ("tools", "use_tool", "has_tool"))
    if own or api.IS_UPSTREAM:
        return
    names, reach = _tools_of(toolkit).names, weakref.ref(toolkit)

    def use_tool(tool_name: str, **kwargs: Any) -> Any:
        if tool_name not in names:
            raise ValueError(f"Tool '{tool_name}' not found.")
        return getattr(reach(), tool_name)(**kwargs)

    toolkit.has_tool, toolkit.use_tool = names.__contains__, use_tool


def _lend_to_readers(toolkit: Any, lending: Lending) -> None:
    """Allow iteration to share records while a READ tool of this toolkit runs."""
    cls, reach, reads = type(toolkit), weakref.ref(toolkit), _tools_of(toolkit).reads
    plain = vars(toolkit).get("use_tool") or (lambda tool_name, **kwargs: cls.use_tool(reach(), tool_name, **kwargs))

    def use_tool(tool_name: str, **kwargs: Any) -> Any:
        lending.allowed = tool_name in reads
        try:
            return plain(tool_name, **kwargs)
        finally:
            lending.allowed = False

    toolkit.use_tool = use_tool


def _reading_sync(environment: Any, lending: Lending) -> Callable[[], None]:
    """Telecom's ``sync_tools``, which looks records up after every step, without copies of what it only reads."""
    reach: Callable[[], Any] = weakref.ref(environment)

    def sync_tools() -> None:
        environment = reach()
        lending.allowed = not api.sync_writes(environment)
        try:
            type(environment).sync_tools(environment)
        finally:
            lending.allowed = False

    return sync_tools


@dataclass(frozen=True)
class _Tools:
    """Names of a toolkit's tools, and of those that tau2 declares read-only."""

    names: frozenset[str]
    reads: frozenset[str]


_TOOLS: dict[type, _Tools] = {}


def _tools_of(toolkit: Any) -> _Tools:
    cls = type(toolkit)
    if cls not in _TOOLS:
        names = frozenset(toolkit.tools)
        _TOOLS[cls] = _Tools(names, frozenset(name for name in names if toolkit.tool_type(name).value == "read"))
    return _TOOLS[cls]


class _StopToolMaker(api.LLMSoloAgent):
    """Lets tau2's solo agent make its stop tool without an agent around it."""

    def __init__(self) -> None:
        self.tools: list[Any] = []
