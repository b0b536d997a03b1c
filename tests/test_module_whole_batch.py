"""GRPOModule with algorithms that look at all tokens of a batch: under a real Trainer, with a real policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tau2_lightning.algorithm import AdvNorm, ClipCov, KLCov, ReinforcePP
from tau2_lightning.policy.tiny import build_tiny_policy
from tests.algorithm import oracles
from tests.fake_service import group
from tests.test_module import Watching, trained

SIGNAL = [group(0, [1.0, 0.0, 0.0, 1.0]), group(1, [0.0, 1.0, 1.0, 1.0])]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(tmp_path_factory.mktemp("policy"), ["check the line status. " * 30], vocab_size=512)


@dataclass(frozen=True, kw_only=True)
class WatchedReinforce(ReinforcePP, Watching):
    """REINFORCE++ that keeps what its loss was given."""


def given_to_the_loss(seen: list, name: str) -> dict[int, torch.Tensor]:
    return {row: values for step in seen for row, values in step[name].items() if row >= 0}


def test_reinforce_pp_normalises_the_batch_after_its_kl_whatever_the_steps(policy: Path, tmp_path: Path) -> None:
    kl_ctl, seen = 0.5, {}
    for steps in (1, 2):
        algorithm = WatchedReinforce(kl_ctl=kl_ctl)
        trained(policy, tmp_path, SIGNAL, SIGNAL, algorithm=algorithm, n_minibatches=steps)
        assert len(algorithm.seen) == 2 * steps
        seen[steps] = algorithm.seen
    for first in (seen[1][:1], seen[2][:2]):  # the first batch
        advantages, reference = (given_to_the_loss(first, name) for name in ("advantages", "reference_logprobs"))
        rows = sorted(advantages)
        rewards = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]
        values = []
        for row in rows:  # the engine's log-prob is -5.5 for every token
            kl = (-5.5 - reference[row].double()).flip(0).cumsum(0).flip(0)
            values += (rewards[row] - kl_ctl * kl).tolist()
        want = oracles.normalised_tokens(values, [0] * len(values), "batch", "batch", True, 1e-5)
        got = torch.cat([advantages[row] for row in rows])
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-3, atol=1e-4)
        assert float(got.mean()) == pytest.approx(0, abs=1e-5) and float(got.std()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "algorithm",
    [
        ClipCov(clip_cov_ratio=0.3, clip_cov_lb=-1.0, clip_cov_ub=1.0, proximal="recompute"),
        ClipCov(clip_cov_ratio=0.3, clip_cov_lb=-1.0, clip_cov_ub=1.0),
        KLCov(kl_cov_ratio=0.2, proximal="recompute", adv_norm=AdvNorm(mean_level="batch", std_level="batch")),
    ],
    ids=["clip-recompute", "clip", "kl-recompute"],
)
def test_a_share_of_the_batchs_tokens_is_chosen_whatever_the_steps(algorithm, policy: Path, tmp_path: Path) -> None:
    share = getattr(algorithm, "clip_cov_ratio", 0.0) or algorithm.kl_cov_ratio
    for steps in (1, 2):
        _, module, _ = trained(policy, tmp_path, SIGNAL, algorithm=algorithm, n_minibatches=steps)
        metrics = module.last_metrics
        n = metrics["tokens/trained"]
        assert metrics["clip_ratio/chosen_mean"] == pytest.approx(int(share * n) / n)
        assert metrics["optim/grad_norm"] > 0


def test_a_batch_without_groups_asks_for_nothing(policy: Path, tmp_path: Path) -> None:
    before, _, _ = trained(policy, tmp_path, SIGNAL, algorithm=ReinforcePP())
    after, module, _ = trained(policy, tmp_path, SIGNAL, [], algorithm=ReinforcePP())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) and module.weights_version == 2
