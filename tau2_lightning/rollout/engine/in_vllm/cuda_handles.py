"""CUDA IPC handles of tensors as JSON: a process on the same GPU maps the memory instead of copying it.

vLLM's own ``ipc`` backend sends pickles over HTTP. These are plain fields, so a forged request cannot run code.
The fields are those of ``torch.multiprocessing.reductions.rebuild_cuda_tensor``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def encode_handle(name: str, rebuild_arguments: Sequence[Any], gpu: str) -> dict[str, Any]:
    """JSON fields of one tensor from ``reduce_tensor``'s arguments; ``gpu`` is the device's UUID."""
    (_, size, stride, offset, _, dtype, _, handle, bytes_, start, _, counter, counter_offset, event, sync) = (
        rebuild_arguments
    )
    return {
        "name": name,
        "gpu": gpu,
        "size": list(size),
        "stride": list(stride),
        "offset": offset,
        "dtype": str(dtype).removeprefix("torch."),
        "handle": _text(handle),
        "storage_bytes": bytes_,
        "storage_offset": start,
        "counter": _text(counter),
        "counter_offset": counter_offset,
        "event": _text(event),
        "event_sync": sync,
    }


def decode_handle(fields: Mapping[str, Any], device_index: int) -> tuple[Any, ...]:
    """The arguments of ``rebuild_cuda_tensor`` on ``device_index``. Raises ValueError for an unknown dtype."""
    dtype = getattr(torch, fields["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{fields['name']}: no dtype {fields['dtype']!r}")
    return (
        torch.Tensor,
        torch.Size(fields["size"]),
        tuple(fields["stride"]),
        fields["offset"],
        torch.storage.TypedStorage,
        dtype,
        device_index,
        _bytes(fields["handle"]),
        fields["storage_bytes"],
        fields["storage_offset"],
        False,
        _bytes(fields["counter"]),
        fields["counter_offset"],
        _bytes(fields["event"]),
        fields["event_sync"],
    )


def share(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Handles of contiguous CUDA tensors. The caller keeps the tensors alive until the other process has read them."""
    from torch.multiprocessing.reductions import reduce_tensor

    handles = []
    for name, tensor in tensors.items():
        gpu = str(torch.cuda.get_device_properties(tensor.device).uuid)
        handles.append(encode_handle(name, reduce_tensor(tensor)[1], gpu))
    return handles


def open_shared(handles: Sequence[Mapping[str, Any]], device_index: int) -> list[tuple[str, torch.Tensor]]:
    """Map shared tensors; returns names and tensors. Raises ValueError when they are on another GPU."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    here = str(torch.cuda.get_device_properties(device_index).uuid)
    opened = []
    for fields in handles:
        if fields["gpu"] != here:
            raise ValueError(f"{fields['name']} is on GPU {fields['gpu']}, this worker on {here}: use shm or nccl")
        opened.append((fields["name"], rebuild_cuda_tensor(*decode_handle(fields, device_index))))
    return opened


def _text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else base64.b64decode(value)
