"""tau2's functions without their debug lines, which cost a tenth of an episode while nobody reads them."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def without_debug_lines(function: Function) -> Function:
    """``function`` compiled from its own source, less its ``logger.debug(...)`` statements.

    tau2 spells out every message twice a step before a disabled log throws it away. Everything else is tau2's, line
    numbers included. Returns ``function`` itself where that cannot be had: without source, with decorators, or when it
    refers to variables around it.
    """
    code = getattr(function, "__code__", None)
    if not isinstance(function, FunctionType) or not isinstance(code, CodeType) or code.co_freevars:
        return function
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):
        return function
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef) or tree.body[0].decorator_list:
        return function
    tree = ast.increment_lineno(ast.fix_missing_locations(_Quiet().visit(tree)), first - 1)
    module = compile(tree, code.co_filename, "exec", dont_inherit=True)
    quiet = next(each for each in module.co_consts if isinstance(each, CodeType))
    if quiet.co_freevars or not set(quiet.co_names) <= set(code.co_names):
        return function  # names are spelled otherwise in a class body
    made = FunctionType(quiet, function.__globals__, function.__name__, function.__defaults__)
    made.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(made, function)  # type: ignore[return-value]


class _Quiet(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        called = node.value.func if isinstance(node.value, ast.Call) else None
        by = called.value if isinstance(called, ast.Attribute) and called.attr == "debug" else None
        if isinstance(by, ast.Name) and by.id == "logger":
            return ast.copy_location(ast.Pass(), node)
        return node
