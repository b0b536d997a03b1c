"""Modules by dotted name."""

from __future__ import annotations

from typing import Any

from torch import nn


def find(root: nn.Module, name: str) -> Any:
    """The module called ``name`` (dotted) below ``root``, or None."""
    module: Any = root
    for part in name.split("."):
        module = getattr(module, part, None)
        if module is None:
            return None
    return module


def put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Make ``module`` the one called ``name`` (dotted) below ``root``; missing modules on the way are made, empty."""
    *way, last = name.split(".")
    holder: nn.Module = root
    for part in way:
        if not hasattr(holder, part):
            setattr(holder, part, nn.Module())
        holder = getattr(holder, part)
    setattr(holder, last, module)
