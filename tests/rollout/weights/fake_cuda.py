"""A fake of PyTorch's CUDA without a GPU: each thread has a current device, which is 0 when the thread starts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

_thread = threading.local()


def current_device() -> int:
    return int(getattr(_thread, "index", 0))


@contextmanager
def device(chosen: torch.device | int) -> Iterator[None]:
    before = current_device()
    _thread.index = chosen if isinstance(chosen, int) else chosen.index
    try:
        yield
    finally:
        _thread.index = before


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace functions of ``torch.cuda`` by these for one test."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", current_device)
    monkeypatch.setattr("torch.cuda.device", device)
