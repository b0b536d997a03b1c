"""Threads that touch CUDA: each is given the trainer's device, because PyTorch's current device is one per thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

CPU = torch.device("cpu")


async def in_thread(device: torch.device, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``function`` in a worker thread whose current CUDA device is ``device``; as ``asyncio.to_thread`` for a CPU.

    A new thread starts on device 0, whatever the thread that started it uses. Collectives, IPC handles and copies would
    go to another rank's GPU.
    """

    def work() -> T:
        if device.type != "cuda":
            return function(*args, **kwargs)
        with torch.cuda.device(device):
            return function(*args, **kwargs)

    return await asyncio.to_thread(work)
