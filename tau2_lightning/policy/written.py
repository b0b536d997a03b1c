"""A policy as a Hugging Face folder, written tensor by tensor: sharded safetensors, index, configuration, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tau2_lightning.durable import bring_to_disk, take_name

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 5_000_000_000  # as transformers
_INDEX = "model.safetensors.index.json"
_METADATA = {"format": "pt"}


@dataclass(frozen=True)
class PolicyFiles:
    """All that a policy's folder holds. ``tensors`` are full and on the CPU, under the names and in the dtype of the
    files, and may come one by one; ``adapter`` writes the adapter's folder beside them.
    """

    tensors: Iterable[tuple[str, Tensor]]
    config: Any
    generation_config: Any = None
    adapter: Callable[[Path], None] | None = None

    def write(self, folder: Path, tokenizer: Any = None, shard_bytes: int = SHARD_BYTES) -> None:
        """Write the folder, which appears complete or not at all; one that is there already is replaced at the end.

        At most one file of ``shard_bytes`` is held in memory, unless a tensor is larger.
        """
        with appearing(folder) as partial:
            write_shards(partial, self.tensors, shard_bytes)
            self.config.save_pretrained(partial)
            if self.generation_config is not None:
                self.generation_config.save_pretrained(partial)
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
            if self.adapter is not None:
                self.adapter(partial / "adapter")


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> None:
    """Write ``tensors`` as ``model.safetensors``, or as numbered files of at most ``shard_bytes`` with an index."""
    from safetensors.torch import save_file

    files: list[list[str]] = []
    total, held, size = 0, dict[str, "Tensor"](), 0

    def flush() -> None:
        save_file(held, folder / f"{len(files)}.safetensors", metadata=_METADATA)
        files.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = tensor.contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    if held or not files:
        flush()
    if len(files) == 1:
        (folder / "0.safetensors").rename(folder / "model.safetensors")
        return
    index: dict[str, str] = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (folder / f"{number}.safetensors").rename(folder / file)
        index |= dict.fromkeys(names, file)
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / _INDEX).write_text(json.dumps(content, indent=2))


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write into. At the end it is brought to the disk and gets that name; an older
    folder stays in place until then. After an error, nothing is left of it."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            if path.suffix == ".safetensors":
                path.chmod(partial.stat().st_mode & 0o666)  # safetensors writes files that only their owner reads
            bring_to_disk(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    take_name(partial, folder)
