"""Aggregation of token losses, with denominators of the whole optimizer step."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .ratios import masked

Aggregation = Literal["token_mean", "sequence_mean", "constant_length"]


def aggregate(
    token_values: Tensor,
    mask: Tensor,
    mode: Aggregation,
    *,
    n_tokens: Tensor,
    n_episodes: Tensor,
    row_shares: Tensor | None = None,
    constant_length: int | None = None,
) -> Tensor:
    """This micro-batch's share of the step's mean. Shares add up over micro-batches and data-parallel ranks. Scalar.

    ``token_values`` and ``mask`` are [B, T]; ``n_tokens``, ``n_episodes`` count the trained tokens and the episodes of
    the whole optimizer step, so the result does not depend on how the step is cut into micro-batches. ``row_shares``
    [B] is each row's share of its episode's trained tokens; None means that every row is an episode. Raises ValueError
    when ``constant_length`` is missing in its mode.

    - ``token_mean``: sum / n_tokens (DAPO, arXiv:2503.14476)
    - ``sequence_mean``: mean over the tokens of each episode, summed / n_episodes (GRPO, arXiv:2402.03300). The output
      ``o_i`` of the paper is the episode: one with several rows counts once, and each of its tokens the same.
    - ``constant_length``: sum / (n_episodes * constant_length) (Dr.GRPO, arXiv:2503.20783)
    """
    values = masked(token_values, mask)
    if mode == "token_mean":
        return values.sum() / n_tokens.clamp(min=1)
    if mode == "sequence_mean":
        means = values.sum(-1) / mask.sum(-1).clamp(min=1)
        return (means if row_shares is None else means * row_shares).sum() / n_episodes.clamp(min=1)
    if constant_length is None:
        raise ValueError("aggregation=constant_length needs constant_length, the number of tokens to divide by")
    return values.sum() / (n_episodes.clamp(min=1) * constant_length)
