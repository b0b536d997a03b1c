"""Our advantages, losses and gradients against the recorded ones of AReaL and verl (``record_peers.py``)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tau2_lightning.algorithm import (
    GMPO,
    GRPO,
    SAPO,
    AdvNorm,
    ClipCov,
    KLCov,
    PolicyGradient,
    ReinforcePP,
    ReinforcePPBaseline,
)
from tau2_lightning.algorithm.off_policy import behaviour_weights
from tau2_lightning.batch.batch import Batch
from tau2_lightning.trajectory import Group, Rollout, Trajectory, Turn
from tests.algorithm.cases import loss_and_gradients
from tests.algorithm.record_peers import FILE

RECORD = json.loads(FILE.read_text())
GIVEN: dict[str, Any] = RECORD["inputs"]
#: AReaL computes log ratios and advantages in float32.
TOLERANCE = {"AReaL": 2e-5, "verl": 1e-6}
# AReaL's tau2 recipe (examples/tau2) with the keys that docs/algorithms.md gives.
RECIPE: dict[str, Any] = {
    "mean_level": "none", "std_level": "none", "adv_norm": AdvNorm(mean_level="batch", std_level="batch"),
    "reward_bias": -0.5, "reward_scaling": 10.0, "reward_clip": 20.0, "eps_clip": 0.4, "eps_clip_higher": 0.4,
    "proximal": "recompute", "importance_sampling": "mask", "behav_imp_weight_cap": 5.0,
}  # fmt: skip


def column(name: str) -> torch.Tensor:
    return torch.tensor(GIVEN[name], dtype=torch.float64)


def micro_batch(proximal: str = "proximal", **columns: torch.Tensor) -> dict[str, torch.Tensor]:
    mask = torch.tensor(GIVEN["mask"])
    return {
        "logprobs": column("logprobs"), "entropy": torch.zeros(4, 12, dtype=torch.float64), "loss_mask": mask,
        "behaviour_logprobs": column("behaviour"), "proximal_logprobs": column(proximal),
        "reference_logprobs": column("reference"), "advantages": column("advantages"),
        "versions": torch.zeros(4, 12, dtype=torch.int32), "version": torch.tensor(0, dtype=torch.int32),
        "n_tokens": mask.sum().double(), "n_rows": torch.tensor(4.0, dtype=torch.float64),
    } | columns  # fmt: skip


def check(algorithm: PolicyGradient, mb: dict[str, torch.Tensor], peer: str, name: str) -> None:
    want = RECORD[peer][name]
    loss, grad, _, _ = loss_and_gradients(algorithm, mb)
    assert float(loss) == pytest.approx(want["loss"], rel=TOLERANCE[peer], abs=TOLERANCE[peer])
    np.testing.assert_allclose(grad.numpy(), want["gradient"], rtol=TOLERANCE[peer], atol=TOLERANCE[peer])
    assert grad.abs().max() > 0.01


def batch_of(algorithm: PolicyGradient, *, reference: bool = False) -> Batch:
    """The recorded episodes as groups of rollouts, credited by ``algorithm``."""
    rollouts: dict[int, list[Rollout]] = {}
    for row, (n, group) in enumerate(zip(GIVEN["lengths"], GIVEN["groups"], strict=True)):
        sampled = np.arange(n) >= 3
        logprobs = np.where(sampled, np.roll(GIVEN["behaviour"][row], 1)[:n], 0).astype(np.float32)
        line = Trajectory.of(
            np.arange(n) + 20 * row, logprobs, np.where(sampled, 0, -1).astype(np.int32), (Turn(3, n),)
        )
        rollouts.setdefault(group, []).append(Rollout(str(group), str(group), row, GIVEN["rewards"][row], (line,)))
    batch = Batch.from_groups([Group(str(g), str(g), tuple(r)) for g, r in rollouts.items()], algorithm, version=0)
    if reference:
        values = {row: np.asarray(GIVEN["reference"][row][:n], np.float32) for row, n in enumerate(GIVEN["lengths"])}
        batch = batch.with_column("reference_logprobs", values).finished(algorithm)
    return batch


def advantages_of(batch: Batch) -> torch.Tensor:
    grid = torch.zeros(4, 12, dtype=torch.float64)
    for row in batch.rows:
        grid[row.row_id, : len(row)] = torch.from_numpy(row.advantages)
        assert row.loss_mask.tolist() == GIVEN["mask"][row.row_id][: len(row)]
    return grid


def test_the_recipe_of_areals_tau2_example() -> None:
    """From rewards to the loss's gradient: bias, scale, normalisation over the batch's tokens, decoupled PPO, mask."""
    algorithm = GRPO(**RECIPE)
    advantages = advantages_of(batch_of(algorithm))
    np.testing.assert_allclose(advantages.numpy(), RECORD["AReaL"]["advantages"], rtol=1e-5, atol=1e-5)
    mb = micro_batch("far", advantages=advantages)
    check(algorithm, mb, "AReaL", "recipe")
    dropped = loss_and_gradients(algorithm, mb)[3]["importance_capped"]
    assert 0 < dropped < mb["n_tokens"], "some token is dropped, so the test sees the mask"


@pytest.mark.parametrize(
    "changed",
    [
        {"adv_norm": AdvNorm()},
        {"adv_norm": AdvNorm(mean_level="group", std_level="group")},
        {"importance_sampling": "truncate"},
        {"eps_clip": 0.2},
    ],
    ids=str,
)
def test_the_recipe_is_told_apart_from_its_neighbours(changed: dict[str, Any]) -> None:
    """Negative control: each change of the recipe gives another loss."""
    algorithm = GRPO(**RECIPE | changed)
    with pytest.raises(AssertionError):
        check(algorithm, micro_batch("far", advantages=advantages_of(batch_of(algorithm))), "AReaL", "recipe")


def test_reinforce_pp_is_verls() -> None:
    algorithm = ReinforcePP(kl_ctl=0.2, adv_norm=AdvNorm(mean_level="batch", std_level="batch", eps=1e-12))
    got = advantages_of(batch_of(algorithm, reference=True))
    np.testing.assert_allclose(got.numpy(), RECORD["verl"]["reinforce_pp"], rtol=1e-5, atol=1e-5)


def test_reinforce_pp_baseline_is_verls() -> None:
    algorithm = ReinforcePPBaseline(adv_norm=AdvNorm(mean_level="batch", std_level="batch", eps=1e-12))
    got = advantages_of(batch_of(algorithm))
    np.testing.assert_allclose(got.numpy(), RECORD["verl"]["reinforce_pp_baseline"], rtol=1e-5, atol=1e-5)


# Their losses have no behaviour weight inside: ours is switched off to match.
PLAIN: dict[str, Any] = {"proximal": "recompute", "importance_sampling": "none"}


def test_sapo_is_areals_and_verls() -> None:
    check(SAPO(**PLAIN, aggregation="token_mean"), micro_batch(), "AReaL", "sapo")
    check(SAPO(**PLAIN), micro_batch(), "verl", "sapo")
    with pytest.raises(AssertionError):
        check(SAPO(**PLAIN, tau_neg=1.0), micro_batch(), "verl", "sapo")


def test_gmpo_is_verls() -> None:
    per_row = column("advantages")[:, :1].expand(4, 12).clone()
    check(GMPO(**PLAIN), micro_batch(advantages=per_row), "verl", "gmpo")
    check(GMPO(**PLAIN), micro_batch(), "verl", "gmpo_tokens")
    with pytest.raises(AssertionError):
        check(GMPO(**PLAIN, eps_clip=0.2), micro_batch(advantages=per_row), "verl", "gmpo")


def chosen(algorithm: ClipCov | KLCov) -> torch.Tensor:
    """The tokens that are chosen. verl ranks them by the log-probs of the trained policy, and so does this test."""
    mask = torch.tensor(GIVEN["mask"])
    rows, positions = mask.nonzero(as_tuple=True)
    tokens = {
        name: column(key)[mask] for name, key in (("advantages", "advantages"), ("proximal_logprobs", "logprobs"))
    }
    tokens |= {"behaviour_logprobs": column("behaviour")[mask], "groups": rows, "row_ids": rows, "positions": positions}
    grid = torch.zeros(4, 12, dtype=torch.float64)
    grid[mask] = algorithm.finish(tokens, 0)["chosen"].double()
    return grid


def test_clip_cov_is_verls() -> None:
    """The share is 1, so that verl's random draw takes every candidate."""
    wide: dict[str, Any] = {"clip_cov_lb": 0.3, "clip_cov_ub": 2.0, "eps_clip": 1.0, "eps_clip_higher": 5.0}
    algorithm = ClipCov(**PLAIN, clip_cov_ratio=1.0, **wide)
    check(algorithm, micro_batch(chosen=chosen(algorithm)), "verl", "clip_cov")
    with pytest.raises(AssertionError):
        check(algorithm, micro_batch(chosen=torch.zeros(4, 12, dtype=torch.float64)), "verl", "clip_cov")


def test_kl_cov_is_verls() -> None:
    algorithm = KLCov(**PLAIN, kl_cov_ratio=0.2, ppo_kl_coef=0.7)
    check(algorithm, micro_batch(chosen=chosen(algorithm)), "verl", "kl_cov")
    with pytest.raises(AssertionError):
        check(algorithm, micro_batch(chosen=torch.ones(4, 12, dtype=torch.float64)), "verl", "kl_cov")


@pytest.mark.parametrize(
    ("peer", "name"), [(peer, name) for peer in ("AReaL", "verl") for name in RECORD[peer]["rejection"]]
)
def test_rows_are_rejected_as_they_do(peer: str, name: Any) -> None:
    want = RECORD[peer]["rejection"][name]
    mask = torch.tensor(GIVEN["mask"])
    weights = behaviour_weights(
        column("far"), column("behaviour"), mask, correction="none", rejection=name, rejection_lower=want["lower"],
        rejection_upper=want["upper"],
    )  # fmt: skip
    kept = torch.tensor(want["kept"]).bool()
    assert torch.equal(weights.kept, kept)
    assert 0 < kept.any(-1).sum() < 4, "some rows are kept and some are not"
