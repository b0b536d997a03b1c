"""One engine or trainer of an allocation: ``archon:d4p2t1`` parsed into a `Component`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .parallel import ParallelSpec, read_letters, read_spec
from .scanner import AllocationError, Fault, Scanner

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
    if scanner.text.startswith(("(", "attn:"), scanner.at):
        attn, ffn = _read_hybrid(scanner, backend)
        return Component(backend, attn, name, ffn, start)
    spec = read_spec(scanner, backend)
    ranks = spec.d * spec.c * spec.t
    if ranks % spec.e:
        problem = f"e{spec.e} does not divide d*c*t = {ranks}"
        raise scanner.fail(problem, "Experts are spread over the d*c*t ranks of a stage", spec.positions["e"])
    return Component(backend, spec, name, None, start)


def _read_hybrid(scanner: Scanner, backend: str) -> tuple[ParallelSpec, ParallelSpec]:
    """The two halves. Sizes that ffn leaves out are filled in: p is attn's, d uses the remaining ranks."""
    example = f"Write {backend}:(attn:d4|ffn:e4)"
    if backend not in ("archon", "megatron"):
        raise scanner.fail(f"{backend} has no (attn:...|ffn:...) form", "Only archon and megatron have it")
    opened = bool(scanner.match(r"\("))
    if not scanner.match("attn:"):
        raise scanner.fail(f"expected 'attn:', found {scanner.here()}", example)
    attn = read_letters(scanner, backend, "dptc")
    if not scanner.match(r"\|"):
        raise scanner.fail(f"expected '|', found {scanner.here()}", example)
    if not scanner.match("ffn:"):
        raise scanner.fail(f"expected 'ffn:', found {scanner.here()}", example)
    at_ffn = scanner.at
    ffn = read_letters(scanner, backend, "dpte")
    if opened and not scanner.match(r"\)"):
        raise scanner.fail(f"expected ')', found {scanner.here()}", "Close the hybrid form")
    faults = list(_halves_disagree(attn, ffn, at_ffn))
    if faults:
        raise AllocationError.of(scanner.text, faults)
    d = ffn.d if "d" in ffn.positions else attn.d * attn.c * attn.t // (ffn.t * ffn.e)
    return attn, ParallelSpec(d, attn.p, ffn.t, 1, ffn.e, ffn.positions)


def _halves_disagree(attn: ParallelSpec, ffn: ParallelSpec, at_ffn: int) -> Iterator[Fault]:
    if "p" in ffn.positions and ffn.p != attn.p:
        yield Fault(ffn.positions["p"], f"ffn p{ffn.p} differs from attn p{attn.p}", "Both halves share p")
    ranks, needed = attn.d * attn.c * attn.t, ffn.t * ffn.e
    allowed = f"Both halves use the same ranks of a stage: here {ranks}"
    if "d" not in ffn.positions and ranks % needed:
        at = ffn.positions.get("e", at_ffn)
        yield Fault(at, f"ffn t*e = {needed} does not divide attn d*c*t = {ranks}", allowed)
    elif "d" in ffn.positions and ranks != ffn.d * needed:
        yield Fault(at_ffn, f"ffn has d*t*e = {ffn.d * needed} ranks in a stage, attn has d*c*t = {ranks}", allowed)
