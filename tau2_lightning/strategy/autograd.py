"""A typed wrapper of `autograd.Function.apply`."""

from __future__ import annotations

from typing import Any

import torch


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply(*arguments)``; torch leaves ``apply`` without types."""
    untyped: Any = function.apply
    return untyped(*arguments)
