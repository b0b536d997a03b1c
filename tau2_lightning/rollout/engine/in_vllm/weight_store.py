"""The weights that this server received over HTTP: complete files once, then changes, which are applied to these files.

vLLM's loaders fuse, shard and repack tensors (q, k and v become one parameter, split over the workers), so a change of
a checkpoint's tensor cannot be applied to the model itself. The store therefore keeps the complete weights under
Hugging Face names in shared memory (2 bytes per parameter, once for all workers of a server) and changes them there.
The workers then load these files like any others.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from .changes import unpack
from .dense_files import DenseFiles
from .private_folders import PrivateFolders

CHUNK_BYTES = 32 << 20  # the longest body of a request


class RefusedError(Exception):
    """A request that the store does not carry out; ``status`` is HTTP's."""

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(reason)


@dataclass
class _Upload:
    """Files that arrive in pieces. ``base`` is the version that they change; None for complete weights."""

    base: str | None
    sizes: tuple[int, ...]
    paths: list[Path]
    arrived: list[dict[int, int]] = field(default_factory=list)  # of each file: offset to length


class WeightStore:
    """One version of the weights, and at most one upload of the next.

    ``id`` differs between any two stores, so a trainer notices that a server has restarted. ``version`` is the label
    that came with the newest commit, None while there are no whole weights. Methods raise RefusedError.
    """

    def __init__(self, folders: PrivateFolders | None = None) -> None:
        self.id = secrets.token_hex(8)
        self.version: str | None = None
        self._folders = folders
        self._dense = DenseFiles()
        self._uploads: dict[str, _Upload] = {}

    @property
    def state(self) -> dict[str, str | None]:
        """``store`` (the id) and ``version``."""
        return {"store": self.id, "version": self.version}

    def begin(self, sizes: Sequence[int], base: str | None) -> str:
        """Begin the upload of files of these sizes; returns its id. Ends any other upload.

        For files of changes, ``base`` is the version that they change. Complete weights (``base`` None) replace the
        previous ones, which are dropped now, so that there is never more than one version in memory.
        """
        if base is not None and base != self.version:
            raise RefusedError(409, f"the store holds version {self.version}, not {base}")
        self._abandon()
        if base is None:
            self.drop()
        try:
            self._folders = self._folders or PrivateFolders.default()
            folder = self._folders.roomy(sum(sizes))
        except OSError as error:
            raise RefusedError(507, str(error)) from error
        upload = secrets.token_hex(8)
        paths = [folder / f"{upload}-{number}" for number in range(len(sizes))]
        for path, size in zip(paths, sizes, strict=True):
            with path.open("wb") as file:
                file.truncate(size)
        self._uploads[upload] = _Upload(base, tuple(sizes), paths, [{} for _ in sizes])
        return upload

    def write(self, upload: str, part: int, offset: int, data: bytes, checksum: str) -> None:
        """Write a piece of file ``part``; ``checksum`` is the XXH3 (128 bits) of ``data``. May be repeated."""
        arriving = self._upload(upload)
        if xxhash.xxh3_128_hexdigest(data) != checksum:
            raise RefusedError(422, f"the checksum of {len(data)} bytes does not match: they are incomplete or altered")
        if not 0 <= part < len(arriving.sizes) or not 0 <= offset <= arriving.sizes[part] - len(data):
            raise RefusedError(413, f"file {part} has no room for {len(data)} bytes at {offset}")
        descriptor = os.open(arriving.paths[part], os.O_WRONLY)
        try:
            written = os.pwrite(descriptor, data, offset)
        finally:
            os.close(descriptor)
        if written != len(data):
            raise RefusedError(507, f"{written} of {len(data)} bytes were written")
        arriving.arrived[part][offset] = len(data)

    def commit(self, upload: str, version: str, digests: Mapping[str, str]) -> list[str]:
        """Make the uploaded files version ``version``; returns the paths of the files that workers load.

        ``digests`` (`DenseFiles.digests`) are those that all tensors must have afterwards. If one differs, the store
        drops its weights, and the next upload must be of complete weights.
        """
        arriving = self._upload(upload)
        for part, (size, pieces) in enumerate(zip(arriving.sizes, arriving.arrived, strict=True)):
            if sum(pieces.values()) != size:
                raise RefusedError(409, f"file {part}: {sum(pieces.values())} of {size} bytes have arrived")
        try:
            if arriving.base is None:
                for path in arriving.paths:
                    self._dense.add(path)
                self._uploads.clear()  # the files are the store's now
            else:
                for path in arriving.paths:
                    for name, change in unpack(path.read_bytes()):
                        self._dense.apply(name, change)
                self._abandon()
            found = self._dense.digests()
            wrong = sorted(name for name in found.keys() | digests.keys() if found.get(name) != digests.get(name))
            if wrong:
                raise ValueError(f"{len(wrong)} of {len(found)} tensors have another digest, first {wrong[0]}")
        except (ValueError, KeyError, TypeError) as error:
            self._abandon()
            self.drop()
            raise RefusedError(422, f"these are not the weights that were sent: {error}") from error
        self.version = version
        return [str(path) for path in self._dense.paths]

    def drop(self) -> None:
        """Forget the weights and free their memory."""
        self.version = None
        paths, self._dense = self._dense.paths, DenseFiles()
        for path in paths:
            path.unlink(missing_ok=True)

    def _abandon(self) -> None:
        for arriving in self._uploads.values():
            for path in arriving.paths:
                path.unlink(missing_ok=True)
        self._uploads.clear()

    def _upload(self, upload: str) -> _Upload:
        if upload not in self._uploads:
            raise RefusedError(409, f"no upload {upload}: another one has begun")
        return self._uploads[upload]
