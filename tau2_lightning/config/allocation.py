"""The use of the devices: ``vllm:d4t2+archon:d4p2t1`` parsed into an `Allocation`.

Grammar (``+`` separates sets of devices, ``|`` lets components share one set)::

    allocation := group ("+" group)*          group := component ("|" component)*
    component  := backend [ "[" name "]" ] ":" (spec | hybrid)
    spec       := (letter number)+            letters in any order, each at most once, number >= 1
    hybrid     := "(" "attn:" spec "|" "ffn:" spec ")"          the brackets may be left out

Letters: ``d`` data, ``p`` pipeline, ``t`` tensor, ``c`` context, ``e`` expert parallelism. A component occupies
``d*p*t*c`` devices. ``e`` spreads the experts over the ``d*c*t`` ranks of a pipeline stage, ``e`` consecutive ranks for
each copy of the experts. A hybrid names both halves of a layer: attention and the rest with ``dptc``, experts with
``dpte``. Both halves have the same ``p``, and ``d*c*t`` of attn equals ``d*t*e`` of ffn. If ffn leaves out ``p``, it
is attn's; if it leaves out ``d``, the remaining ranks are used. An ffn ``t`` splits each expert (AReaL's expert tensor
parallelism).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from .component import GENERATION_BACKENDS, Component, read_component
from .model_sizes import ModelSizes
from .parallel import ParallelSpec
from .scanner import AllocationError, Fault, Scanner

__all__ = ["Allocation", "AllocationError", "Component", "ParallelSpec"]


@dataclass(frozen=True)
class Allocation:
    """A parsed allocation: groups of components; the components of one group share its devices."""

    groups: tuple[tuple[Component, ...], ...]
    text: str = field(default="", compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Allocation:
        """Read an allocation. Raises AllocationError, which quotes the text and points at the character."""
        scanner = Scanner(text)
        groups = [_read_group(scanner)]
        while scanner.match(r"\+"):
            groups.append(_read_group(scanner))
        if not scanner.ended:
            raise scanner.fail(f"unexpected {scanner.here()}", "Expected '+', '|' or the end")
        _check_names(scanner, [component for group in groups for component in group])
        return cls(tuple(groups), text)

    @property
    def components(self) -> tuple[Component, ...]:
        return tuple(component for group in self.groups for component in group)

    @property
    def generation(self) -> Component | None:
        """The first inference component."""
        return next((component for component in self.components if component.generates), None)

    @property
    def engine(self) -> str:
        """The engine that serves the policy: ``vllm`` or ``sglang``; ``vllm`` where no component generates."""
        return self.generation.backend if self.generation else GENERATION_BACKENDS[0]

    @property
    def training(self) -> Component | None:
        """The first training component."""
        return next((component for component in self.components if not component.generates), None)

    @property
    def world(self) -> int:
        """Devices of the whole allocation."""
        return sum(group[0].world for group in self.groups)

    def __str__(self) -> str:
        return "+".join("|".join(map(str, group)) for group in self.groups)

    def check_cluster(self, n_nodes: int, n_gpus_per_node: int) -> None:
        """Raise AllocationError when the cluster has fewer devices, or a tensor group would cross nodes."""
        have, start = n_nodes * n_gpus_per_node, 0
        for group in self.groups:
            start += group[0].world
            if start > have:
                raise self._error(
                    group[0].position,
                    f"needs {self.world} devices, but the cluster has {n_nodes} x {n_gpus_per_node} = {have}",
                    "Lower a size here, or raise cluster.n_nodes or cluster.n_gpus_per_node",
                )
        for component in self.components:
            if component.spec.t > n_gpus_per_node:
                raise self._error(
                    component.spec.positions.get("t", component.position),
                    f"t{component.spec.t} spans nodes of {n_gpus_per_node} devices",
                    f"t up to {n_gpus_per_node}; use p across nodes",
                )

    def check_model(self, sizes: ModelSizes) -> None:
        """Raise AllocationError, which lists every size that does not fit the model's layers, heads or experts."""
        self._refuse(fault for component in self.components for fault in sizes.misfits(component))

    def check_runnable(self) -> None:
        """Raise AllocationError, which lists everything that the grammar allows but this package does not compute."""
        self._refuse(
            Fault(
                component.ffn.positions["t"],
                f"t{component.ffn.t} in ffn would split each expert's matrices over t ranks (expert tensor "
                "parallelism); archon keeps every expert whole",
                "Write t1 there, or leave it out, and raise e or d",
            )
            for component in self.components
            if component.ffn and component.ffn.t > 1
        )

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know about how this allocation is computed."""
        return tuple(
            f"{component}: computed by archon, the trainer of this project, in the layout of the same letters; "
            "megatron-core is not used"
            for component in self.components
            if component.backend == "megatron"
        )

    def training_spec(self) -> ParallelSpec:
        """The trainer's sizes, with ``e`` of a hybrid's ffn half.

        Raises AllocationError when there is no trainer, and for the reasons of ``check_runnable``.
        """
        self.check_runnable()
        component = self.training
        if component is None:
            raise self._error(0, "has no training component", "Add e.g. +archon:d1")
        return replace(component.spec, e=component.experts)

    def _refuse(self, faults: Iterable[Fault]) -> None:
        found = list(faults)
        if found:
            raise AllocationError.of(self.text or str(self), found)

    def _error(self, position: int, problem: str, allowed: str) -> AllocationError:
        return AllocationError(self.text or str(self), position, problem, allowed)


def _read_group(scanner: Scanner) -> tuple[Component, ...]:
    components = [read_component(scanner)]
    while scanner.match(r"\|"):
        components.append(read_component(scanner))
        first, last = components[0], components[-1]
        if first.world != last.world:
            problem = f"{last} has {last.world} devices, {first} shares its own {first.world}"
            raise scanner.fail(problem, "Components joined by '|' need equal worlds", last.position)
    return tuple(components)


def _check_names(scanner: Scanner, components: list[Component]) -> None:
    seen: set[tuple[bool, str]] = set()
    for component in components:
        key = (component.generates, component.name)
        if key in seen:
            kind = "inference" if component.generates else "training"
            problem = f"a second {kind} component {component.name or 'without a name'}"
            raise scanner.fail(problem, f"Name it: {component.backend}[name]:...", component.position)
        seen.add(key)
