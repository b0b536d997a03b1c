"""Prices of a model's tokens, by litellm's table."""

from __future__ import annotations

from functools import cache


def cost_of(model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
    """The price of one answer in dollars, without discounts for cached tokens; None if litellm has no price."""
    prices = _prices(model)
    return None if prices is None else prompt_tokens * prices[0] + completion_tokens * prices[1]


@cache
def _prices(model: str) -> tuple[float, float] | None:
    """Dollars for one prompt token and for one sampled token, from the table in litellm's package (no request)."""
    import litellm

    table = litellm.model_cost
    entry = table.get(model) or table.get(model.partition("/")[2]) or {}
    read, written = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    return None if read is None or written is None else (float(read), float(written))
