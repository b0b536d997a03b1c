"""Changes of tensors as bytes: positions and values of the elements whose bits differ from the previous version.

Elements are treated as unsigned integers, so NaN payloads, -0.0, infinities and denormals need no special care. After
one optimizer step with a small learning rate, fewer than one bfloat16 element in a hundred differs, mostly by one unit
in the last place. A tensor has one or two sections:

- ``positions``: the number of unchanged elements before each changed one. A byte of 255 means "255 more", and any other
  byte ends a number.
- ``values``: new minus old modulo 2^bits, zigzag coded (0, -1, 1, -2, ... become 0, 1, 2, 3, ...): first the lowest
  bytes of all values, then the next bytes, and so on.
- If this is not shorter than the whole tensor, there is no ``positions``, and ``values`` are all new elements.

Sections of tensors with positions are compressed (zlib) if that saves a tenth. A file consists of the length of its
header (8 bytes, little endian), the header, and the sections. The header is JSON: for each tensor its ``bits``, its
``count``, and [start, end, length before compression or 0] of each section. Nothing is pickled.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[Any]  # unsigned integers: the elements of a tensor as they are in memory
ESCAPE = 255
LEVEL = 1  # zlib's fastest: the values are so regular that higher levels save little
WORTH = 0.9  # a section is compressed if it becomes smaller than this share of its length


@dataclass(frozen=True)
class Change:
    """What differs in one tensor.

    ``positions`` [n] int64 ascend, and ``values`` [n] are new minus old modulo 2^bits. Without positions, ``values``
    are all elements of the new tensor.
    """

    positions: npt.NDArray[np.int64] | None
    values: Bits

    def apply(self, target: Bits) -> None:
        """Change ``target`` (the old tensor, flat) in place. Raises ValueError when the change does not fit it."""
        if self.values.dtype != target.dtype:
            raise ValueError(f"changes of {self.values.dtype} do not fit elements of {target.dtype}")
        if self.positions is None:
            if len(self.values) != len(target):
                raise ValueError(f"{len(self.values)} values for {len(target)} elements")
            target[:] = self.values
        elif len(self.positions):
            if self.positions[-1] >= len(target):
                raise ValueError(f"position {self.positions[-1]} in {len(target)} elements")
            target[self.positions] += self.values  # positions are distinct; unsigned addition wraps


def longer_than_all(bytes_of_gaps: int, count: int, itemsize: int, elements: int) -> bool:
    """Whether ``count`` changes take at least as many bytes as all ``elements``, before any compression."""
    return bytes_of_gaps + count * itemsize >= elements * itemsize


def sparse(positions: npt.NDArray[np.int64], new: Bits, old: Bits, elements: int) -> Change | None:
    """The change of a tensor of ``elements`` whose values at ``positions`` went from ``old`` to ``new``.

    None when sending all elements is shorter.
    """
    if longer_than_all(_gap_bytes(positions), len(positions), new.itemsize, elements):
        return None
    return Change(positions, new - old)


def pack(changes: Mapping[str, Change]) -> bytes:
    """The changes of these tensors as one file."""
    header: dict[str, Any] = {}
    sections: list[bytes] = []
    at = 0
    for name, change in changes.items():
        fields: dict[str, Any] = {"bits": 8 * change.values.itemsize, "count": len(change.values)}
        parts = {"values": change.values.tobytes()}
        if change.positions is not None:
            parts = {"positions": _gaps(change.positions).tobytes(), "values": _planes(_zigzag(change.values))}
        for key, raw in parts.items():
            packed = raw if change.positions is None else zlib.compress(raw, LEVEL)
            smaller = len(packed) < WORTH * len(raw)
            section = packed if smaller else raw
            fields[key] = [at, at + len(section), len(raw) if smaller else 0]
            sections.append(section)
            at += len(section)
        header[name] = fields
    head = json.dumps(header).encode()
    return b"".join([len(head).to_bytes(8, "little"), head, *sections])


def unpack(data: bytes | memoryview) -> Iterator[tuple[str, Change]]:
    """Names and changes of a file made by ``pack``. Raises ValueError for anything else, also a file cut short."""
    view = memoryview(data)
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > len(view) - 8:
        raise ValueError("changes: the header is cut short")
    body = view[8 + length :]
    try:
        header = json.loads(bytes(view[8 : 8 + length]))
        for name, fields in header.items():
            yield name, _change(fields, body)
    except (KeyError, TypeError, AttributeError, IndexError, zlib.error) as error:
        raise ValueError(f"changes: {error!r}") from error


def _change(fields: Mapping[str, Any], body: memoryview) -> Change:
    bits, count = int(fields["bits"]), int(fields["count"])
    if bits not in (8, 16, 32, 64):
        raise ValueError(f"changes of {bits} bits")
    dtype = np.dtype(f"<u{bits // 8}")
    values = _section(fields["values"], body, count * dtype.itemsize)
    if "positions" not in fields:
        return Change(None, np.frombuffer(values, dtype))
    gaps = np.frombuffer(_section(fields["positions"], body, None), np.uint8)
    positions = _positions(gaps)
    if len(positions) != count:
        raise ValueError(f"{len(positions)} positions for {count} values")
    planes = np.frombuffer(values, np.uint8).reshape(dtype.itemsize, count)
    coded = np.ascontiguousarray(planes.T).view(dtype)[:, 0]
    return Change(positions, _from_zigzag(coded))


def _section(bounds: list[int], body: memoryview, size: int | None) -> bytes | memoryview:
    """The bytes of a section, of which there must be ``size``. It never expands to more bytes than its header says."""
    start, end, raw = bounds
    if not 0 <= start <= end <= len(body):
        raise ValueError(f"section {start} to {end} of {len(body)} bytes")
    section: bytes | memoryview = body[start:end]
    if raw:
        section = zlib.decompressobj().decompress(section, raw)
        if len(section) != raw:
            raise ValueError(f"a section has {len(section)} bytes, not {raw}")
    if size is not None and len(section) != size:
        raise ValueError(f"a section has {len(section)} bytes, not {size}")
    return section


def _gap_bytes(positions: npt.NDArray[np.int64]) -> int:
    return len(positions) + int((_before(positions) // ESCAPE).sum())


def _before(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of unchanged elements between each position and the one before."""
    return np.diff(positions, prepend=-1) - 1


def _gaps(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    escapes, rest = np.divmod(_before(positions), ESCAPE)
    ends = np.cumsum(escapes + 1) - 1
    coded = np.full(int(ends[-1]) + 1, ESCAPE, np.uint8)
    coded[ends] = rest
    return coded


def _positions(gaps: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    ends = np.flatnonzero(gaps != ESCAPE)
    before: npt.NDArray[np.int64] = np.cumsum(gaps, dtype=np.int64)[ends]
    return before + np.arange(len(ends))


def _zigzag(values: Bits) -> Bits:
    signed = values.view(np.dtype(f"<i{values.itemsize}"))
    coded: Bits = ((signed << 1) ^ (signed >> (8 * values.itemsize - 1))).view(values.dtype)
    return coded


def _from_zigzag(coded: Bits) -> Bits:
    one = coded.dtype.type(1)
    values: Bits = (coded >> one) ^ (~(coded & one) + one)
    return values


def _planes(values: Bits) -> bytes:
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T).tobytes()
