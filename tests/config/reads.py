"""Which fields of the schema the package reads, found by the types that its source annotates.

A name alone proves little: ``.path`` is read of many objects. So expressions are followed from annotated parameters,
attributes and functions to a section of the configuration, over assignments, loops, comprehensions and calls.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.section import Section

Kind: TypeAlias = type[Section] | None
Names: TypeAlias = dict[str, type[Section]]
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)
# Calls that give what they are called on, or one of it.
_PASS_ON = {"values", "get", "model_copy", "next", "iter", "list", "tuple", "sorted", "replace"}


def below(section: type[Section]) -> Iterator[type[Section]]:
    """All sections that derive from ``section``."""
    for one in section.__subclasses__():
        yield one
        yield from below(one)


class Reads:
    """``fields`` holds (name of the section, name of the field) for every field that ``trees`` read."""

    def __init__(self, trees: Iterable[ast.Module]) -> None:
        self.fields: set[tuple[str, str]] = set()
        self._sections = {one.__name__: one for one in below(Section)}
        self._name = re.compile(rf"\b({'|'.join(self._sections)})\b")
        self._attributes: dict[tuple[str | None, str], type[Section]] = {}
        self._results: Names = {}
        trees = list(trees)
        for node in (node for tree in trees for node in ast.walk(tree)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (kind := self._named(node.returns)):
                self._results[node.name] = kind
        for _ in range(2):  # an attribute may be read in a file before the one that sets it
            for tree in trees:
                self._visit(tree, {}, None)

    def of(self, section: type[Section], field: str) -> bool:
        """Whether ``field`` is read, of the section or of one that shares it."""
        family = {*section.__mro__, *below(section)}
        return any((one.__name__, field) in self.fields for one in family)

    def _named(self, annotation: ast.expr | str | None) -> Kind:
        text = ast.unparse(annotation) if isinstance(annotation, ast.expr) else annotation or ""
        found = self._name.search(text)
        return self._sections[found[1]] if found else None

    def _member(self, section: type[Section], name: str) -> Kind:
        if name in section.model_fields:
            return self._named(str(section.model_fields[name].annotation))
        member = getattr(section, name, None)
        function = member.fget if isinstance(member, property) else getattr(member, "func", member)
        return self._named(str(getattr(function, "__annotations__", {}).get("return", "")))

    def _kind(self, node: ast.expr, names: Names, owner: str | None) -> Kind:
        match node:
            case ast.Name(id=name):
                return names.get(name)
            case ast.Attribute(value=value, attr=name):
                if (section := self._kind(value, names, owner)) is not None:
                    return self._member(section, name)
                return self._attributes.get((owner, name)) if ast.unparse(value) == "self" else None
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name) as function, args=arguments):
                if name in _PASS_ON:
                    inner = function.value if isinstance(function, ast.Attribute) else next(iter(arguments), None)
                    return self._kind(inner, names, owner) if inner is not None else None
                return self._results.get(name) or self._sections.get(name)
            case ast.Subscript(value=inner) | ast.NamedExpr(value=inner) | ast.Await(value=inner):
                return self._kind(inner, names, owner)
            case ast.GeneratorExp(elt=inner) | ast.ListComp(elt=inner):
                return self._kind(inner, names, owner)
            case ast.BoolOp(values=parts):
                return next(filter(None, (self._kind(part, names, owner) for part in parts)), None)
            case ast.IfExp(body=body, orelse=other):
                return self._kind(body, names, owner) or self._kind(other, names, owner)
        return None

    def _bind(self, target: ast.expr, value: ast.expr, names: Names, owner: str | None) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, given in zip(target.elts, value.elts, strict=False):
                self._bind(one, given, names, owner)
        elif (kind := self._kind(value, names, owner)) is not None:
            if isinstance(target, ast.Name):
                names[target.id] = kind
            elif isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                self._attributes[owner, target.attr] = kind

    def _loop(self, loop: ast.For | ast.comprehension, names: Names, owner: str | None) -> None:
        match loop.iter, loop.target:
            case ast.Call(func=ast.Attribute(value=mapping, attr="items")), ast.Tuple(elts=[_, value]):
                self._bind(value, mapping, names, owner)
            case ast.Tuple(elts=items), target:
                for item in items:
                    self._bind(target, item, names, owner)
            case items, target:
                self._bind(target, items, names, owner)

    def _visit(self, node: ast.AST, names: Names, owner: str | None) -> None:
        if isinstance(node, ast.ClassDef):
            owner = node.name
        elif isinstance(node, _FUNCTIONS):
            if "validator" in "".join(map(ast.unparse, getattr(node, "decorator_list", ()))):
                return  # to check a value is not to use it
            names = names | self._parameters(node.args)
            if owner in self._sections:
                names["self"] = self._sections[owner]
        elif isinstance(node, _COMPREHENSIONS):
            for part in node.generators:
                self._loop(part, names, owner)
        elif isinstance(node, ast.For):
            self._loop(node, names, owner)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, node.value, names, owner)
        elif isinstance(node, ast.NamedExpr):
            self._bind(node.target, node.value, names, owner)
        elif (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and (kind := self._named(node.annotation))
        ):
            self._attributes[owner, node.target.id] = kind
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            self._note(node, self._kind(node.value, names, owner))
        for child in ast.iter_child_nodes(node):
            self._visit(child, names, owner)

    def _parameters(self, arguments: ast.arguments) -> Names:
        given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        kinds: dict[str, Any] = {one.arg: self._named(one.annotation) for one in given}
        return {name: kind for name, kind in kinds.items() if kind is not None}

    def _note(self, node: ast.Attribute, section: Kind) -> None:
        if section is None:
            return
        # A section that is handed on as a whole is used; the configuration that is written down is not.
        handed_on = node.attr == "model_dump" and section is not RunConfig
        for field in section.model_fields if handed_on else (node.attr,):
            self.fields.add((section.__name__, field))


def reads_of(package: Path) -> Reads:
    return Reads(ast.parse(path.read_text()) for path in package.rglob("*.py"))
