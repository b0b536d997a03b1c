"""Checks that the sizes of an allocation fit a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .component import Component
from .scanner import Fault


@dataclass(frozen=True)
class ModelSizes:
    """The numbers of layers, heads and experts of a model (a dense model has 0 experts), and its name for messages."""

    layers: int
    heads: int
    kv_heads: int
    experts: int
    name: str

    def misfits(self, component: Component) -> Iterator[Fault]:
        """Every size of ``component`` that does not fit."""
        spec, at = component.spec, component.spec.positions
        if component.generates:
            if self.heads % spec.t:
                problem = f"t{spec.t} does not divide the {self.heads} attention heads of {self.name}"
                yield Fault(at.get("t", component.position), problem, f"t must divide {self.heads}")
        else:
            yield from self._heads(component)
        if spec.p > self.layers:
            problem = f"p{spec.p} is more than the {self.layers} layers of {self.name}"
            yield Fault(at.get("p", component.position), problem, f"p from 1 to {self.layers}")
        if component.experts > 1 and (not self.experts or self.experts % component.experts):
            where = (component.ffn or spec).positions.get("e", component.position)
            has = f"{self.experts} experts" if self.experts else "no experts"
            allowed = f"e must divide {self.experts}" if self.experts else "Leave e out for a dense model"
            yield Fault(where, f"e{component.experts}, but {self.name} has {has}", allowed)

    def _heads(self, component: Component) -> Iterator[Fault]:
        """A trainer splits the heads into t parts, and each part into c."""
        spec, at = component.spec, component.spec.positions
        for letter, size in (("t", spec.t), ("c", spec.c * spec.t)):
            kinds = (("attention heads", self.heads), ("key-value heads", self.kv_heads))
            wrong = [f"{count} {kind}" for kind, count in kinds if count % size]
            if wrong and getattr(spec, letter) > 1:
                problem = f"{letter}{getattr(spec, letter)} does not divide the {' and '.join(wrong)} of {self.name}"
                allowed = f"t*c must divide {self.kv_heads if self.heads % self.kv_heads == 0 else self.heads}"
                yield Fault(at.get(letter, component.position), problem, allowed)
