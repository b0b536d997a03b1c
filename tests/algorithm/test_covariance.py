"""Clip-Cov and KL-Cov: which tokens of a batch are chosen, against brute force, and what the choice depends on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tau2_lightning.algorithm import AdvNorm, ClipCov, KLCov
from tau2_lightning.algorithm.covariance import hashed, sampled
from tests.algorithm.test_token_advantages import given_tokens

N = 2000


def brute_force(logprobs: list[float], advantages: list[float]) -> list[float]:
    """arXiv:2505.22617, eq. 10."""
    log_mean, mean = math.fsum(logprobs) / len(logprobs), math.fsum(advantages) / len(advantages)
    return [(p - log_mean) * (a - mean) for p, a in zip(logprobs, advantages, strict=True)]


@pytest.mark.parametrize("column", ["behaviour_logprobs", "proximal_logprobs"])
def test_kl_cov_chooses_the_tokens_of_highest_covariance(column) -> None:
    tokens = given_tokens(n=N)
    if column == "behaviour_logprobs":
        del tokens["proximal_logprobs"]
    cov = brute_force(tokens[column].tolist(), tokens["advantages"].tolist())
    want = set(sorted(range(N), key=lambda i: -cov[i])[: int(0.01 * N)])
    chosen = KLCov(kl_cov_ratio=0.01).finish(tokens, 0)["chosen"]
    assert set(chosen.nonzero().flatten().tolist()) == want
    assert KLCov(kl_cov_ratio=1e-9).finish(tokens, 0)["chosen"].sum() == 1, "at least one"


def test_clip_cov_draws_a_share_from_within_the_bounds() -> None:
    tokens = given_tokens(n=N)
    cov = brute_force(tokens["proximal_logprobs"].tolist(), tokens["advantages"].tolist())
    within = {i for i in range(N) if 0.5 < cov[i] < 3.0}
    drawn = ClipCov(clip_cov_ratio=0.01, clip_cov_lb=0.5, clip_cov_ub=3.0).finish(tokens, 7)["chosen"]
    chosen = set(drawn.nonzero().flatten().tolist())
    assert chosen < within and len(chosen) == int(0.01 * N)
    every = ClipCov(clip_cov_ratio=1.0, clip_cov_lb=0.5, clip_cov_ub=3.0).finish(tokens, 7)["chosen"]
    assert set(every.nonzero().flatten().tolist()) == within, "all candidates, and no others"
    assert not ClipCov(clip_cov_lb=1e6, clip_cov_ub=1e7).finish(tokens, 7)["chosen"].any()


def test_the_draw_is_the_same_in_every_order_and_another_at_every_version() -> None:
    tokens = given_tokens(n=N)
    algorithm = ClipCov(clip_cov_ratio=0.02, clip_cov_lb=0.1, clip_cov_ub=9.0)
    first = algorithm.finish(tokens, 7)["chosen"]
    torch.manual_seed(99)  # the state of torch's generator must not matter
    assert torch.equal(algorithm.finish(tokens, 7)["chosen"], first)
    order = torch.from_numpy(np.random.default_rng(5).permutation(N))
    turned = algorithm.finish({name: column[order] for name, column in tokens.items()}, 7)["chosen"]
    assert torch.equal(turned, first[order])
    assert not torch.equal(algorithm.finish(tokens, 8)["chosen"], first)


def test_the_draw_is_uniform() -> None:
    rows, positions = torch.arange(300) // 10, torch.arange(300) % 10
    candidates = torch.arange(300) % 3 == 0
    counts = torch.zeros(300)
    for seed in range(600):
        chosen = sampled(candidates, 20, rows, positions, seed=seed)
        assert chosen.sum() == 20
        counts += chosen
    assert (counts[~candidates] == 0).all()
    expected = 600 * 20 / 100
    assert (counts[candidates] - expected).abs().max() < 5 * expected**0.5
    chi2 = ((counts[candidates] - expected) ** 2 / expected).sum()
    assert chi2 < 150, "99 degrees of freedom: 99.9 % lie below 149"


def test_hashes_are_distinct_for_distinct_names() -> None:
    rows, positions = np.divmod(np.arange(100_000, dtype=np.uint64), np.uint64(1000))
    assert len(np.unique(hashed(rows, positions, seed=1))) == 100_000
    swapped = hashed(positions, rows, seed=1)
    assert (hashed(rows, positions, seed=1) == swapped).sum() <= 100, "the hash ignores which number is the row"


def test_the_choice_sees_the_normalised_advantages() -> None:
    tokens = given_tokens(n=N) | {"groups": torch.zeros(N, dtype=torch.int64)}
    tokens["advantages"] = tokens["advantages"] * 1e-3
    bounds: dict[str, Any] = {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.5, "clip_cov_ub": 3.0}
    assert not ClipCov(**bounds).finish(tokens, 0)["chosen"].any()
    scaled = ClipCov(**bounds, adv_norm=AdvNorm(mean_level="batch", std_level="batch")).finish(tokens, 0)
    assert scaled["chosen"].any() and scaled["advantages"].std() == pytest.approx(1, rel=1e-2)


def test_probability_0_does_not_poison_the_covariance() -> None:
    tokens = given_tokens(n=N)
    tokens["proximal_logprobs"][3] = -math.inf
    assert KLCov().finish(tokens, 0)["chosen"].sum() == int(2e-3 * N)


@pytest.mark.parametrize("kind", [ClipCov, KLCov])
def test_it_waits_for_the_trainers_logprobs_only_when_they_are_made(kind) -> None:
    assert not kind().finishes_late and not kind(proximal="interpolate").finishes_late
    assert kind(proximal="recompute").finishes_late
