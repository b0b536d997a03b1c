"""Runs functions and statements of TRL's installed source, unchanged and without importing its trainers.

The import of a trainer also imports an inference engine, while the functions with the formulas need only torch.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
from pathlib import Path
from types import CodeType
from typing import Any

import torch


@functools.cache
def _tree(file: str) -> ast.Module:
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.origin is not None, "trl is a test dependency: pip install -e '.[dev]'"
    return ast.parse((Path(spec.origin).parent / file).read_text())


def _compiled(node: ast.stmt) -> CodeType:
    head = ast.parse("from __future__ import annotations").body
    return compile(ast.fix_missing_locations(ast.Module(body=[*head, node], type_ignores=[])), "trl", "exec")


def _only(nodes: list[ast.stmt], what: str) -> ast.stmt:
    assert len(nodes) == 1, f"TRL's source has changed: {len(nodes)} times {what}"
    return nodes[0]


def _named(file: str, name: str) -> ast.FunctionDef:
    defs = [n for n in ast.walk(_tree(file)) if isinstance(n, ast.FunctionDef) and n.name == name]
    node = _only(list(defs), f"def {name} in {file}")
    assert isinstance(node, ast.FunctionDef)
    return node


@functools.cache
def _helpers() -> dict[str, Any]:
    scope: dict[str, Any] = {"torch": torch, "math": math}
    for helper in ("nanmin", "nanmax", "nanstd"):
        exec(_compiled(_named("trainer/utils.py", helper)), scope)
    return scope


@functools.cache
def function(file: str, name: str) -> Any:
    """The function or method ``name`` of a file of TRL, in a scope of torch, math and TRL's nan helpers."""
    scope = dict(_helpers())
    exec(_compiled(_named(file, name)), scope)
    return scope[name]


@functools.cache
def _statement(file: str, name: str, begins: str) -> CodeType:
    found = [n for n in ast.walk(_named(file, name)) if isinstance(n, ast.If) and ast.unparse(n).startswith(begins)]
    return _compiled(_only(list(found), f"{begins!r} in {name} of {file}"))


def run_statement(file: str, name: str, begins: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the one ``if`` statement of a function that starts with ``begins``; return ``names`` as it leaves them."""
    scope = _helpers() | names
    exec(_statement(file, name, begins), scope)
    return scope
