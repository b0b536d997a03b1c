"""What counts as a reward: one finite number."""

from __future__ import annotations

import math
from typing import Any

#: The largest absolute value of a reward. Advantages square rewards in float32.
REWARD_LIMIT = 1e9


def as_reward(value: Any) -> float:
    """``value`` as a float: a Python number, a bool, or a NumPy or torch value of one element.

    Raises ValueError for anything else: None, text (also ``"1"``), several elements, NaN, infinity, and numbers beyond
    ``REWARD_LIMIT``.
    """
    try:
        number = value.item() if hasattr(value, "item") else value
        if not hasattr(number, "__float__"):
            raise TypeError(f"{type(number).__name__} is no number")
        reward = float(number)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{_shown(value)} is not one number") from error
    if not math.isfinite(reward):
        raise ValueError(f"{reward} is not a finite number")
    if abs(reward) > REWARD_LIMIT:
        raise ValueError(f"{reward:g} is beyond +-{REWARD_LIMIT:g}")
    return reward


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
