"""One engine or trainer of an allocation: ``archon:d4p2t1`` parsed into a `Component`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .parallel import ParallelSpec, read_letters, read_spec
from .scanner import Scanner

GENERATION_BACKENDS = ("vllm", "sglang")
TRAINING_BACKENDS = ("archon", "fsdp", "megatron")


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


def read_component(scanner: Scanner) -> Component:
    """The component at the scanner's place. Raises AllocationError that points at the character."""
    start = scanner.at
    backend = scanner.match(r"[A-Za-z_]\w*")
    known = (*GENERATION_BACKENDS, *TRAINING_BACKENDS)
    if backend not in known:
        if re.fullmatch(r"([dptce]\d+)+", backend):
            raise scanner.fail("sizes without a backend", f"Write e.g. vllm:{backend} or archon:{backend}", start)
        problem = f"unknown backend {backend!r}" if backend else f"expected a backend, found {scanner.here()}"
        raise scanner.fail(problem, f"One of {', '.join(known)}", start)
    name = ""
    if scanner.match(r"\["):
        name = scanner.match(r"[A-Za-z_]\w*")
        if not name or not scanner.match(r"\]"):
            raise scanner.fail(f"bad component name at {scanner.here()}", f"Write {backend}[name]:...")
    if not scanner.match(":"):
        raise scanner.fail(f"expected ':', found {scanner.here()}", f"Write {backend}:d1")
    if scanner.text.startswith("(", scanner.at):
        attn, ffn = _read_hybrid(scanner, backend)
        return Component(backend, attn, name, ffn, start)
    spec = read_spec(scanner, backend)
    if spec.e > 1 and (spec.d * spec.c) % spec.e:
        problem = f"e{spec.e} does not divide d*c = {spec.d * spec.c}"
        raise scanner.fail(problem, "Experts are spread over the d*c ranks", spec.positions["e"])
    return Component(backend, spec, name, None, start)


def _read_hybrid(scanner: Scanner, backend: str) -> tuple[ParallelSpec, ParallelSpec]:
    if backend not in ("archon", "megatron"):
        raise scanner.fail(f"{backend} has no (attn:...|ffn:...) form", "Only archon and megatron have it")
    scanner.at += 1
    for word in ("attn:", "ffn:"):
        if not scanner.match(word):
            raise scanner.fail(f"expected '{word}', found {scanner.here()}", f"Write {backend}:(attn:d4|ffn:e4)")
        if word == "attn:":
            attn = read_letters(scanner, backend, "dptc")
            if not scanner.match(r"\|"):
                raise scanner.fail(f"expected '|', found {scanner.here()}", f"Write {backend}:(attn:d4|ffn:e4)")
    at_ffn = scanner.at
    ffn = read_letters(scanner, backend, "dpte")
    if not scanner.match(r"\)"):
        raise scanner.fail(f"expected ')', found {scanner.here()}", "Close the hybrid form")
    if "p" not in ffn.positions:  # a pipeline stage holds both halves of its layers
        ffn = ParallelSpec(ffn.d, attn.p, ffn.t, 1, ffn.e, ffn.positions)
    if ffn.p != attn.p:
        raise scanner.fail(f"ffn p{ffn.p} differs from attn p{attn.p}", "Both halves share p", ffn.positions["p"])
    if ffn.ffn_world != attn.world:
        problem = f"ffn has d*p*t*e = {ffn.ffn_world} devices, attn has d*p*t*c = {attn.world}"
        raise scanner.fail(problem, "Both worlds must be equal", at_ffn)
    return attn, ffn
