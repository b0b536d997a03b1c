"""JSON schemas of functions: as one document of their own, and inside a larger one.

A reference ``#/...`` counts from the root of its document, so a schema with references means something else, or
nothing, once it stands inside another one. Here each part that a reference names becomes a definition ``$defs/KEY`` of
the outermost document. That also spares grammar compilers recursive roots, anchors and escaped pointers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

#: Keywords whose value maps names to schemas.
_NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "dependencies"})
#: Keywords whose value is data, which may look like a schema.
_DATA = frozenset({"const", "enum", "default", "example", "examples", "required", "dependentRequired", "type"})
#: What a part no longer needs once its references are resolved.
_DROPPED = frozenset({"$defs", "definitions", "$id", "$schema", "$anchor", "$dynamicAnchor"})
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})


class SchemaError(ValueError):
    """A function's schema refers to something that it does not contain."""


def parameters_of(function: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of a function's arguments, as a document; any object where none is given. Raises SchemaError."""
    schema, definitions = embedded(function, "d")
    return {**schema, "$defs": definitions} if definitions else schema


def calls_schema(functions: Sequence[Mapping[str, Any]], *, once: bool) -> dict[str, Any]:
    """The schema of a non-empty JSON list of calls ``{"name", "parameters"}`` of ``functions``, of one with ``once``
    (what vLLM uses for ``required``). Raises SchemaError."""
    calls, definitions = [], {}
    for number, function in enumerate(functions):
        schema, parts = embedded(function, f"f{number}_")
        definitions.update(parts)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"type": "string", "enum": [function["name"]]}, "parameters": schema},
                "required": ["name", "parameters"],
            }
        )
    whole: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": calls}}
    if once:
        whole["maxItems"] = 1
    return {**whole, "$defs": definitions} if definitions else whole


def embedded(function: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of a function's arguments for use inside a larger document, and the definitions that the document
    must have; their keys begin with ``prefix``. Raises SchemaError."""
    document = _Document(function.get("parameters") or {"type": "object", "properties": {}}, prefix)
    return document.moved(document.root), document.definitions


class _Document:
    """One schema document whose parts move to another; ``definitions`` grows with each reference that is met."""

    def __init__(self, root: Mapping[str, Any], prefix: str) -> None:
        self.root, self._prefix = root, prefix
        self._id = str(root.get("$id") or "").rstrip("#")
        self._keys: dict[str, str] = {}
        self.definitions: dict[str, Any] = {}

    def moved(self, schema: Any) -> Any:
        """A copy of ``schema`` whose references name definitions."""
        if isinstance(schema, list):
            return [self.moved(item) for item in schema]
        if not isinstance(schema, Mapping):
            return schema
        out: dict[str, Any] = {}
        for key, value in schema.items():
            if key in _REFERENCES and isinstance(value, str):
                out["$ref"] = self._reference(value)
            elif key in _NAMED and isinstance(value, Mapping):
                out[key] = {name: self.moved(part) for name, part in value.items()}
            elif key not in _DROPPED:
                out[key] = value if key in _DATA else self.moved(value)
        return out

    def _reference(self, reference: str) -> str:
        if self._id and (reference == self._id or reference.startswith(self._id + "#")):
            reference = reference[len(self._id) :] or "#"
        if not reference.startswith("#"):
            return reference  # another document: the engine refuses it
        pointer = unquote(reference[1:])
        key = self._keys.get(pointer)
        if key is None:
            # Named before it is moved: a schema may contain itself.
            key = self._keys[pointer] = f"{self._prefix}{len(self._keys)}"
            self.definitions[key] = self.moved(self._target(pointer, reference))
        return f"#/$defs/{key}"

    def _target(self, pointer: str, reference: str) -> Any:
        part: Any = self.root
        if pointer and not pointer.startswith("/"):
            part = _anchored(self.root, pointer)
        elif pointer:
            for token in pointer[1:].split("/"):
                part = _child(part, token.replace("~1", "/").replace("~0", "~"))
        if part is None:
            raise SchemaError(f"a function's schema refers to {reference[:200]!r}, which it does not contain")
        return part


def _child(part: Any, name: str) -> Any:
    if isinstance(part, Mapping):
        return part.get(name)
    if isinstance(part, list) and name.isdigit() and int(name) < len(part):
        return part[int(name)]
    return None


def _anchored(schema: Any, anchor: str) -> Any:
    if isinstance(schema, Mapping) and anchor in (schema.get("$anchor"), schema.get("$dynamicAnchor")):
        return schema
    parts = schema.values() if isinstance(schema, Mapping) else schema if isinstance(schema, list) else ()
    return next((found for part in parts if (found := _anchored(part, anchor)) is not None), None)
