"""Sizes of parallel dimensions: ``d4p2t1`` parsed into a `ParallelSpec`.

Letters: ``d`` data, ``p`` pipeline, ``t`` tensor, ``c`` context, ``e`` expert parallelism.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .scanner import Scanner

LETTERS = {"d": "data", "p": "pipeline", "t": "tensor", "c": "context", "e": "expert"}
# Every device of an allocation gets an entry of its own, and every rank reads all of them.
LARGEST = 65_536
_TYPO = f"At most {LARGEST}; is a digit too many?"
_ALLOWED = {"vllm": "dpt", "sglang": "dpt", "archon": "dptce", "fsdp": "dc", "megatron": "dptce"}


@dataclass(frozen=True)
class ParallelSpec:
    """Sizes of the parallel dimensions. ``positions`` holds the position of each letter, for later errors."""

    d: int = 1
    p: int = 1
    t: int = 1
    c: int = 1
    e: int = 1
    positions: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def world(self) -> int:
        """Devices: ``d*p*t*c``. Experts are spread over the ``d*c*t`` ranks of a stage and need no others."""
        return self.d * self.p * self.t * self.c

    def __str__(self) -> str:
        written = sorted(self.positions, key=lambda letter: self.positions[letter])
        rest = [letter for letter in "dptce" if letter not in written and getattr(self, letter) > 1]
        return "".join(f"{letter}{getattr(self, letter)}" for letter in [*written, *rest]) or "d1"

    @classmethod
    def parse(cls, text: str) -> ParallelSpec:
        """Read a bare spec such as ``d2p1t2``. Raises AllocationError."""
        scanner = Scanner(text)
        spec = read_spec(scanner, "archon")
        if not scanner.ended:
            raise scanner.fail(f"unexpected {scanner.here()}", "Write sizes such as d2p1t2")
        return spec


def read_spec(scanner: Scanner, backend: str) -> ParallelSpec:
    """The sizes at the scanner's place. Raises AllocationError for letters that ``backend`` does not have."""
    return read_letters(scanner, backend, _ALLOWED[backend])


def read_letters(scanner: Scanner, backend: str, letters: str) -> ParallelSpec:
    """As `read_spec`, for one half of a hybrid: only ``letters`` may be more than 1."""
    sizes: dict[str, int] = {}
    positions: dict[str, int] = {}
    while scanner.at < len(scanner.text) and scanner.text[scanner.at].isalnum():
        start = scanner.at
        letter = scanner.text[start]
        listed = ", ".join(f"{key} ({LETTERS[key]})" for key in letters)
        if letter not in LETTERS:
            raise scanner.fail(f"unknown dimension {letter!r}", f"Letters here: {listed}")
        if letter in positions:
            raise scanner.fail(f"{letter!r} is given twice", f"Each letter once; first at {positions[letter] + 1}")
        scanner.at += 1
        digits = scanner.match(r"[0-9]+")
        if not digits:
            raise scanner.fail(f"{letter!r} needs a number, found {scanner.here()}", f"Write {letter}1 or more")
        if len(digits.lstrip("0")) > len(str(LARGEST)) or int(digits) > LARGEST:
            raise scanner.fail(f"{letter} is more than {LARGEST}", _TYPO, start + 1)
        if int(digits) < 1:
            raise scanner.fail(f"{letter}{digits} is not positive", f"Write {letter}1 or more", start + 1)
        if letter not in letters and int(digits) > 1:
            hint = " Pipeline and tensor parallelism are archon's" if backend == "fsdp" else ""
            problem = f"{backend} has no {LETTERS[letter]} parallelism here"
            raise scanner.fail(problem, f"Letters here: {listed}.{hint}", start)
        sizes[letter], positions[letter] = int(digits), start
    if not sizes:
        raise scanner.fail(f"expected sizes, found {scanner.here()}", f"Write {backend}:d1")
    return ParallelSpec(**sizes, positions=positions)
