"""Tool calls as a Python list: ``[look(at="door"), go(to=3)]`` (Llama 3.2, Llama 4, ToolACE).

The list must be the whole turn, as for vLLM. It is read as Python's syntax, never run.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

from .json_calls import MalformedCall, checked_call
from .message import ToolCall
from .tools import FunctionTools, Read, names_of, read_attempts

_NAMES: dict[str, Any] = {"true": True, "false": False, "null": None}
_HEAD = re.compile(r"\[\s*(?P<name>[A-Za-z_][\w.]*)\((?P<key>\s*\w+\s*=|\s*\)|\s*$)?")


class PythonicParser:
    """``wrapping``: a pair of tokens that may stand around the list."""

    def __init__(self, wrapping: Sequence[str] = ()) -> None:
        self._wrapping = tuple(wrapping)
        self.openings = ("[", *self._wrapping[:1])

    def parse(self, text: str, tools: FunctionTools) -> Read:
        """A turn's text as (content, tool calls, invalid_format)."""
        names = names_of(tools)
        return read_attempts(text, lambda at: self._find(text, at, names), lambda at: (self._read(text), len(text)))

    def structural_tag(self, functions: FunctionTools, *, once: bool) -> None:
        """None: a forced call is sampled as a JSON list."""

    def _find(self, text: str, at: int, names: frozenset[str]) -> int:
        """Where the list begins: at the start of the turn the call of any function, elsewhere of a known one."""
        start = len(text) - len(text.lstrip())
        if at == 0 and any(text.startswith(opening, start) for opening in self._wrapping[:1]):
            return start
        for head in _HEAD.finditer(text, at):
            if head["name"] in names or (head["key"] is not None and head.start() == start):
                return head.start()
        return -1

    def _read(self, text: str) -> list[ToolCall]:
        body = text.strip()
        for opening, closing in [self._wrapping] if self._wrapping else []:
            body = body.removeprefix(opening).removesuffix(closing).strip()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # "\d" in a string
                tree = ast.parse(body, mode="eval").body
            if not isinstance(tree, ast.List):
                raise MalformedCall("no list of calls")
            return [_call(item) for item in tree.elts]
        except MalformedCall:
            raise
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            # All of these come from Python's reader: broken syntax, a null character, text nested too deeply.
            raise MalformedCall(str(error)) from error


def _call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise MalformedCall("no call with named arguments")
    arguments = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    if len(arguments) < len(node.keywords):
        raise MalformedCall("an argument is given twice")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    return checked_call(ToolCall(_name(node.func), text))


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    raise MalformedCall("no name of a function")


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str()):
            return node.value
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float() as number)):
            return -number if isinstance(node.op, ast.USub) else number
    raise MalformedCall("an argument is no value")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise MalformedCall("a key is no string")
