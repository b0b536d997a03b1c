"""The GPUs of this machine. torch, whose import takes seconds, is asked only where there may be one."""

from __future__ import annotations

import sys
from pathlib import Path

#: What the drivers of GPUs make: NVIDIA's on Linux, on Jetson, and under WSL; AMD's.
_OF_DRIVERS = ("nvidia[0-9]*", "nvhost*", "dxg", "kfd")


def device_count(devices: Path = Path("/dev")) -> int:
    """GPUs that torch sees; 0 without asking it where no driver is there, unless it is imported already."""
    if "torch" not in sys.modules and not any(any(devices.glob(name)) for name in _OF_DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()
