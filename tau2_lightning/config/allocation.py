"""Which devices do what: ``vllm:d4t2+archon:d4p2t1`` parsed into an `Allocation`.

Grammar (``+`` separates sets of devices, ``|`` lets components share one set)::

    allocation := group ("+" group)*          group := component ("|" component)*
    component  := backend [ "[" name "]" ] ":" (spec | hybrid)
    spec       := (letter number)+            letters in any order, each at most once, number >= 1
    hybrid     := "(" "attn:" spec "|" "ffn:" spec ")"

Letters: ``d`` data, ``p`` pipeline, ``t`` tensor, ``c`` context, ``e`` expert parallelism. A component occupies
``d*p*t*c`` devices; ``e`` reuses the ``d*c`` ranks, and in a hybrid the ffn world ``d*p*t*e`` equals the attn world.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

GENERATION_BACKENDS = ("vllm", "sglang")
TRAINING_BACKENDS = ("archon", "fsdp", "megatron")
LETTERS = {"d": "data", "p": "pipeline", "t": "tensor", "c": "context", "e": "expert"}
_ALLOWED = {"vllm": "dpt", "sglang": "dpt", "archon": "dptce", "fsdp": "dc", "megatron": "dptce"}


class AllocationError(ValueError):
    """The allocation cannot be read or cannot run. ``position`` is the 0-based character that is wrong."""

    def __init__(self, text: str, position: int, problem: str, allowed: str) -> None:
        self.text, self.position, self.problem, self.allowed = text, position, problem, allowed
        super().__init__(
            f"allocation {text!r}, character {position + 1}: {problem}. {allowed}\n    {text}\n    {' ' * position}^"
        )


@dataclass(frozen=True)
class ParallelSpec:
    """Sizes of the parallel dimensions. ``positions`` remembers where each letter stood, for later errors."""

    d: int = 1
    p: int = 1
    t: int = 1
    c: int = 1
    e: int = 1
    positions: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def world(self) -> int:
        """Devices of a dense layout: ``d*p*t*c`` (experts reuse the data ranks)."""
        return self.d * self.p * self.t * self.c

    @property
    def ffn_world(self) -> int:
        """Devices when this is the ffn half of a hybrid: ``d*p*t*e``."""
        return self.d * self.p * self.t * self.e

    def __str__(self) -> str:
        written = sorted(self.positions, key=lambda letter: self.positions[letter])
        rest = [letter for letter in "dptce" if letter not in written and getattr(self, letter) > 1]
        return "".join(f"{letter}{getattr(self, letter)}" for letter in [*written, *rest]) or "d1"

    @classmethod
    def parse(cls, text: str) -> ParallelSpec:
        """Read a bare spec such as ``d2p1t2``. Raises AllocationError."""
        return _Parser(text).bare_spec("archon")


@dataclass(frozen=True)
class Component:
    """One engine or trainer. ``ffn`` is set only for the hybrid mixture-of-experts form."""

    backend: str
    spec: ParallelSpec
    name: str = ""
    ffn: ParallelSpec | None = None
    position: int = field(default=0, compare=False, repr=False)

    @property
    def generates(self) -> bool:
        return self.backend in GENERATION_BACKENDS

    @property
    def world(self) -> int:
        return self.spec.world

    @property
    def experts(self) -> int:
        """Expert-parallel size: of the ffn half in a hybrid, else of the spec."""
        return self.ffn.e if self.ffn else self.spec.e

    def __str__(self) -> str:
        sizes = f"(attn:{self.spec}|ffn:{self.ffn})" if self.ffn else str(self.spec)
        return f"{self.backend}{f'[{self.name}]' if self.name else ''}:{sizes}"


@dataclass(frozen=True)
class Allocation:
    """A parsed allocation: groups of components; the components of one group share its devices."""

    groups: tuple[tuple[Component, ...], ...]
    text: str = field(default="", compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Allocation:
        """Read an allocation. Raises AllocationError, which quotes the text and points at the character."""
        return _Parser(text).allocation()

    @property
    def components(self) -> tuple[Component, ...]:
        return tuple(component for group in self.groups for component in group)

    @property
    def generation(self) -> Component | None:
        """The first inference component."""
        return next((component for component in self.components if component.generates), None)

    @property
    def training(self) -> Component | None:
        """The first training component."""
        return next((component for component in self.components if not component.generates), None)

    @property
    def colocated(self) -> bool:
        """True when engine and trainer share devices."""
        return any(len({component.generates for component in group}) == 2 for group in self.groups)

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

    def check_model(
        self, *, num_layers: int, num_heads: int, num_kv_heads: int, num_experts: int = 0, model: str = "the model"
    ) -> None:
        """Raise AllocationError when a size does not fit the model's layers, heads or experts."""
        for component in self.components:
            spec, at = component.spec, component.spec.positions
            kinds = (("attention heads", num_heads), ("key-value heads", num_kv_heads))
            if not component.generates:
                for kind, count in kinds:
                    for letter in "tc":
                        size = getattr(spec, letter) * (spec.t if letter == "c" else 1)
                        if count % size and getattr(spec, letter) > 1:
                            raise self._error(
                                at.get(letter, component.position),
                                f"{letter}{getattr(spec, letter)} does not divide the {count} {kind} of {model}",
                                f"t*c must divide {count}",
                            )
            elif num_heads % spec.t:
                problem = f"t{spec.t} does not divide the {num_heads} attention heads of {model}"
                raise self._error(at.get("t", component.position), problem, f"t must divide {num_heads}")
            if spec.p > num_layers:
                problem = f"p{spec.p} is more than the {num_layers} layers of {model}"
                raise self._error(at.get("p", component.position), problem, f"p from 1 to {num_layers}")
            if component.experts > 1 and (not num_experts or num_experts % component.experts):
                where = (component.ffn or spec).positions.get("e", component.position)
                has = f"{num_experts} experts" if num_experts else "no experts"
                allowed = f"e must divide {num_experts}" if num_experts else "Leave e out for a dense model"
                raise self._error(where, f"e{component.experts}, but {model} has {has}", allowed)

    def check_runnable(self) -> None:
        """Raise AllocationError for backends and hybrids that are understood but not provided."""
        for component in self.components:
            if component.backend == "megatron":
                raise self._error(
                    component.position, "the megatron trainer is not provided", "Use archon, same letters"
                )
            for half in (component.spec, component.ffn) if component.ffn else ():
                if half.t > 1:
                    problem = "experts are not split over t, nor is attention beside them"
                    raise self._error(half.positions["t"], problem, "Use d, c, p and e, e.g. (attn:d4|ffn:e4)")

    def training_spec(self) -> ParallelSpec:
        """The trainer's sizes, with ``e`` of a hybrid's ffn half.

        Raises AllocationError when there is no trainer, and as ``check_runnable`` does.
        """
        self.check_runnable()
        component = self.training
        if component is None:
            raise self._error(0, "has no training component", "Add e.g. +archon:d1")
        return replace(component.spec, e=component.experts)

    def _error(self, position: int, problem: str, allowed: str) -> AllocationError:
        return AllocationError(self.text or str(self), position, problem, allowed)


class _Parser:
    """Recursive descent over one string; ``at`` is the next character."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def fail(self, problem: str, allowed: str, position: int | None = None) -> AllocationError:
        return AllocationError(self.text, self.at if position is None else position, problem, allowed)

    def match(self, pattern: str) -> str:
        found = re.compile(pattern).match(self.text, self.at)
        self.at += len(found.group()) if found else 0
        return found.group() if found else ""

    def here(self) -> str:
        return repr(self.text[self.at]) if self.at < len(self.text) else "the end"

    def allocation(self) -> Allocation:
        groups: list[tuple[Component, ...]] = []
        while True:
            groups.append(self.group())
            if not self.match(r"\+"):
                break
        if self.at < len(self.text):
            raise self.fail(f"unexpected {self.here()}", "Expected '+', '|' or the end")
        self.check_names([component for group in groups for component in group])
        return Allocation(tuple(groups), self.text)

    def group(self) -> tuple[Component, ...]:
        components = [self.component()]
        while self.match(r"\|"):
            components.append(self.component())
            first, last = components[0], components[-1]
            if first.world != last.world:
                problem = f"{last} has {last.world} devices, {first} shares its own {first.world}"
                raise self.fail(problem, "Components joined by '|' need equal worlds", last.position)
        return tuple(components)

    def component(self) -> Component:
        start = self.at
        backend = self.match(r"[A-Za-z_]\w*")
        known = (*GENERATION_BACKENDS, *TRAINING_BACKENDS)
        if backend not in known:
            if re.fullmatch(r"([dptce]\d+)+", backend):
                raise self.fail("sizes without a backend", f"Write e.g. vllm:{backend} or archon:{backend}", start)
            problem = f"unknown backend {backend!r}" if backend else f"expected a backend, found {self.here()}"
            raise self.fail(problem, f"One of {', '.join(known)}", start)
        name = ""
        if self.match(r"\["):
            name = self.match(r"[A-Za-z_]\w*")
            if not name or not self.match(r"\]"):
                raise self.fail(f"bad component name at {self.here()}", f"Write {backend}[name]:...")
        if not self.match(":"):
            raise self.fail(f"expected ':', found {self.here()}", f"Write {backend}:d1")
        if self.text.startswith("(", self.at):
            attn, ffn = self.hybrid(backend)
            return Component(backend, attn, name, ffn, start)
        spec = self.spec(backend, _ALLOWED[backend])
        if spec.e > 1 and (spec.d * spec.c) % spec.e:
            problem = f"e{spec.e} does not divide d*c = {spec.d * spec.c}"
            raise self.fail(problem, "Experts are spread over the d*c ranks", spec.positions["e"])
        return Component(backend, spec, name, None, start)

    def hybrid(self, backend: str) -> tuple[ParallelSpec, ParallelSpec]:
        if backend not in ("archon", "megatron"):
            raise self.fail(f"{backend} has no (attn:...|ffn:...) form", "Only archon and megatron have it")
        self.at += 1
        for word in ("attn:", "ffn:"):
            if not self.match(word):
                raise self.fail(f"expected '{word}', found {self.here()}", f"Write {backend}:(attn:d4|ffn:e4)")
            if word == "attn:":
                attn = self.spec(backend, "dptc")
                if not self.match(r"\|"):
                    raise self.fail(f"expected '|', found {self.here()}", f"Write {backend}:(attn:d4|ffn:e4)")
        at_ffn = self.at
        ffn = self.spec(backend, "dpte")
        if not self.match(r"\)"):
            raise self.fail(f"expected ')', found {self.here()}", "Close the hybrid form")
        if "p" not in ffn.positions:  # a pipeline stage holds both halves of its layers
            ffn = ParallelSpec(ffn.d, attn.p, ffn.t, 1, ffn.e, ffn.positions)
        if ffn.p != attn.p:
            raise self.fail(f"ffn p{ffn.p} differs from attn p{attn.p}", "Both halves share p", ffn.positions["p"])
        if ffn.ffn_world != attn.world:
            problem = f"ffn has d*p*t*e = {ffn.ffn_world} devices, attn has d*p*t*c = {attn.world}"
            raise self.fail(problem, "Both worlds must be equal", at_ffn)
        return attn, ffn

    def spec(self, backend: str, letters: str) -> ParallelSpec:
        sizes: dict[str, int] = {}
        positions: dict[str, int] = {}
        while self.at < len(self.text) and self.text[self.at].isalnum():
            start = self.at
            letter = self.text[start]
            listed = ", ".join(f"{key} ({LETTERS[key]})" for key in letters)
            if letter not in LETTERS:
                raise self.fail(f"unknown dimension {letter!r}", f"Letters here: {listed}")
            if letter in positions:
                raise self.fail(f"{letter!r} is given twice", f"Each letter once; first at {positions[letter] + 1}")
            self.at += 1
            digits = self.match(r"[0-9]+")
            if not digits:
                raise self.fail(f"{letter!r} needs a number, found {self.here()}", f"Write {letter}1 or more")
            if int(digits) < 1:
                raise self.fail(f"{letter}{digits} is not positive", f"Write {letter}1 or more", start + 1)
            if letter not in letters and int(digits) > 1:
                hint = " Pipeline and tensor parallelism are archon's" if backend == "fsdp" else ""
                problem = f"{backend} has no {LETTERS[letter]} parallelism here"
                raise self.fail(problem, f"Letters here: {listed}.{hint}", start)
            sizes[letter], positions[letter] = int(digits), start
        if not sizes:
            raise self.fail(f"expected sizes, found {self.here()}", f"Write {backend}:d1")
        return ParallelSpec(**sizes, positions=positions)

    def bare_spec(self, backend: str) -> ParallelSpec:
        spec = self.spec(backend, _ALLOWED[backend])
        if self.at < len(self.text):
            raise self.fail(f"unexpected {self.here()}", "Write sizes such as d2p1t2")
        return spec

    def check_names(self, components: list[Component]) -> None:
        seen: set[tuple[bool, str]] = set()
        for component in components:
            key = (component.generates, component.name)
            if key in seen:
                kind = "inference" if component.generates else "training"
                problem = f"a second {kind} component {component.name or 'without a name'}"
                raise self.fail(problem, f"Name it: {component.backend}[name]:...", component.position)
            seen.add(key)
