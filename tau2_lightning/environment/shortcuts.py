"""Shortcuts through tau2's environments, set on each instance: the same answers with less work.

Each refers to its environment weakly. With a reference cycle an environment would live until the garbage collector
runs, and many of them would push the active ones out of a core's caches.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import tau2_api as api
from .databases.records import Answers, Lending


def answer_quickly(environment: Any, answers: Answers) -> Callable[[Any], Any]:
    """tau2's ``Environment.get_response``, except that it writes no debug line with the whole result, and converts a
    shared record to JSON once, not each time that a tool returns it.
    """
    reach: Callable[[], Any] = weakref.ref(environment)

    def get_response(message: Any) -> Any:
        environment, error = reach(), False
        try:
            result = environment.make_tool_call(message.name, requestor=message.requestor, **message.arguments)
            environment.sync_tools()
        except Exception as problem:  # noqa: BLE001 - as tau2: a tool's error of any type is the answer to its caller
            result, error = f"Error: {problem}", True
        content = answers.text(result, environment.to_json_str)
        return api.ToolMessage(id=message.id, content=content, requestor=message.requestor, role="tool", error=error)

    return get_response


def find_tools_directly(toolkit: Any) -> None:
    """Make ``toolkit`` look up one tool; tau2's own ``use_tool`` and ``has_tool`` bind all of them to find one."""
    cls, base = type(toolkit), api.ToolKitBase
    own = any(getattr(cls, name, None) is not getattr(base, name) for name in ("tools", "use_tool", "has_tool"))
    if own:
        return
    names, reach = _tools_of(toolkit).names, weakref.ref(toolkit)

    def use_tool(tool_name: str, **kwargs: Any) -> Any:
        if tool_name not in names:
            raise ValueError(f"Tool '{tool_name}' not found.")
        return getattr(reach(), tool_name)(**kwargs)

    toolkit.has_tool, toolkit.use_tool = names.__contains__, use_tool


def lend_to_readers(toolkit: Any, lending: Lending) -> None:
    """Share records uncopied while a tool of this toolkit runs that tau2 declares read-only."""
    cls, reach, reads = type(toolkit), weakref.ref(toolkit), _tools_of(toolkit).reads
    plain = vars(toolkit).get("use_tool") or (lambda tool_name, **kwargs: cls.use_tool(reach(), tool_name, **kwargs))

    def use_tool(tool_name: str, **kwargs: Any) -> Any:
        lending.allowed = tool_name in reads
        try:
            return plain(tool_name, **kwargs)
        finally:
            lending.allowed = False

    toolkit.use_tool = use_tool


def lend_to_sync(environment: Any, lending: Lending) -> Callable[[], None]:
    """Telecom's ``sync_tools``, which looks up records after every step, without copies of what it only reads."""
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
