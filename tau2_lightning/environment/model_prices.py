"""What a model's tokens cost, where litellm's table knows the model."""

from __future__ import annotations

from functools import cache


def cost_of(model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
    """Dollars for the tokens of one answer; None where litellm knows no price. Discounts for cached tokens are not
    counted."""
    prices = _prices(model)
    return None if prices is None else prompt_tokens * prices[0] + completion_tokens * prices[1]


@cache
def _prices(model: str) -> tuple[float, float] | None:
    """Dollars for one token read, and for one written. From the table that litellm brings along, without a request."""
    import litellm

    table = litellm.model_cost
    entry = table.get(model) or table.get(model.partition("/")[2]) or {}
    read, written = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    return None if read is None or written is None else (float(read), float(written))
