"""Every loss against float loops with hand-derived gradients (tolerance 1e-6), and its behaviour at the extremes."""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.algorithm import (
    CISPO,
    DAPO,
    GMPO,
    GRPO,
    GSPO,
    RLOO,
    SAPO,
    ClipCov,
    DrGRPO,
    KLCov,
    PolicyGradient,
    ReinforcePP,
    ReinforcePPBaseline,
    merge,
)
from tau2_lightning.algorithm.off_policy import Rejection
from tests.algorithm.cases import as_case, loss_and_gradients, microbatches
from tests.algorithm.oracles import loss_and_gradient

CLIPPED = [GRPO, DAPO, DrGRPO, RLOO, GSPO, CISPO, GMPO, ClipCov, ReinforcePP, ReinforcePPBaseline]
ALGORITHMS: list[type[PolicyGradient]] = [*CLIPPED, SAPO, KLCov]
SURROGATES: dict[type[PolicyGradient], str] = {
    GSPO: "gspo",
    CISPO: "cispo",
    GMPO: "gmpo",
    SAPO: "sapo",
    ClipCov: "clip_cov",
    KLCov: "kl_cov",
}
TOLERANCE = 1e-6
FEW = settings(max_examples=40, deadline=None)

aggregations = st.sampled_from(
    [{"aggregation": "token_mean"}, {"aggregation": "sequence_mean"}]
    + [{"aggregation": "constant_length", "constant_length": n} for n in (3, 100)]
)
kl_knobs = st.fixed_dictionaries(
    {
        "kl_ctl": st.sampled_from([0.0, 0.1]),
        "kl_estimator": st.sampled_from(["k1", "k2", "k3"]),
        "kl_in": st.sampled_from(["loss", "reward"]),
        "entropy_coef": st.sampled_from([0.0, 0.01]),
    }
)
off_policy_knobs = st.fixed_dictionaries(
    {
        "proximal": st.sampled_from(["behaviour", "recompute", "interpolate"]),
        "importance_sampling": st.sampled_from(["none", "truncate", "mask"]),
        "importance_level": st.sampled_from(["token", "sequence", "geometric"]),
        "behav_imp_weight_min": st.sampled_from([0.0, 0.9]),
        "behav_imp_weight_cap": st.sampled_from([1.1, 5.0]),
        "rejection": st.sampled_from(get_args(Rejection)),
        "rejection_lower": st.sampled_from([0.0, 0.5]),
        "rejection_upper": st.sampled_from([2.0, 100.0]),
    }
)


def compare(algorithm: PolicyGradient, mb: dict) -> None:
    knobs = dataclasses.asdict(algorithm) | {"surrogate": SURROGATES.get(type(algorithm), "ppo")}
    want, want_grad, want_entropy = loss_and_gradient(as_case(mb, **knobs))
    loss, grad, grad_entropy, _ = loss_and_gradients(algorithm, mb)
    scale = max(1.0, abs(want))
    assert abs(float(loss) - want) <= TOLERANCE * scale
    for got, expected in ((grad, want_grad), (grad_entropy, want_entropy)):
        np.testing.assert_allclose(got.numpy(), np.asarray(expected), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ALGORITHMS, ids=lambda k: k.__name__)
@FEW
@given(mb=microbatches())
def test_defaults_match_the_loop(kind: type[PolicyGradient], mb: dict) -> None:
    compare(kind(), mb)


@FEW
@given(
    mb=microbatches(),
    kind=st.sampled_from(CLIPPED),
    eps=st.tuples(st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 0.3, 3.0])),
    c_clip=st.sampled_from([None, 1.5, 10.0]),
    aggregation=aggregations,
    kl=kl_knobs,
)
def test_clips_aggregations_kl_and_entropy_match_the_loop(mb, kind, eps, c_clip, aggregation, kl) -> None:
    c_clip = None if kind in (CISPO, GMPO) else c_clip
    compare(kind(eps_clip=eps[0], eps_clip_higher=eps[1], c_clip=c_clip, **aggregation, **kl), mb)


@settings(max_examples=100, deadline=None)
@given(mb=microbatches(), kind=st.sampled_from([GRPO, GSPO, CISPO, GMPO, SAPO, ClipCov, KLCov]), knobs=off_policy_knobs)
def test_off_policy_corrections_match_the_loop(mb, kind, knobs) -> None:
    if knobs["proximal"] != "recompute":
        mb = {k: v for k, v in mb.items() if k != "proximal_logprobs"}
    compare(kind(**knobs), mb)


def test_the_oracle_notices_a_wrong_sign_and_a_missing_weight() -> None:
    """Negative control: the comparison fails for the bugs it is meant to catch."""

    class WrongSign(GRPO):
        def token_loss(self, ratio_logs, logprobs, advantages, mask):
            return super().token_loss(ratio_logs, logprobs, -advantages, mask)

    class Unweighted(GRPO):
        def importance_weights(self, proximal, behaviour, logprobs, mask):
            weights = super().importance_weights(proximal, behaviour, logprobs, mask)
            return dataclasses.replace(weights, weight=mask.to(weights.weight.dtype))

    mb = ordinary_microbatch()
    with pytest.raises(AssertionError):
        compare(WrongSign(), mb)
    with pytest.raises(AssertionError):
        compare(Unweighted(proximal="recompute"), mb)
    compare(GRPO(proximal="recompute"), mb)


def ordinary_microbatch(rows: int = 4, width: int = 9, spread: float = 0.4, seed: int = 3) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(rows, width, generator=g, dtype=torch.float64)  # noqa: E731
    behaviour = -draw().abs() - 0.1
    mask = torch.rand(rows, width, generator=g) < 0.7
    return {
        "logprobs": behaviour + spread * draw(),
        "entropy": draw().abs(),
        "behaviour_logprobs": behaviour,
        "proximal_logprobs": behaviour + spread * draw(),
        "reference_logprobs": behaviour + spread * draw(),
        "advantages": draw(),
        "chosen": (torch.rand(rows, width, generator=g) < 0.3).double(),
        "loss_mask": mask,
        "versions": torch.randint(0, 4, (rows, width), generator=g, dtype=torch.int32),
        "version": torch.tensor(4, dtype=torch.int32),
        "n_tokens": mask.sum().double(),
        "n_rows": torch.tensor(float(rows), dtype=torch.float64),
    }


@pytest.mark.parametrize("kind", [*ALGORITHMS, PolicyGradient], ids=lambda k: k.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("proximal", ["behaviour", "recompute", "interpolate"])
def test_finite_for_infinite_ratios_and_zero_gradient_where_masked(kind, dtype, proximal) -> None:
    mb = ordinary_microbatch()
    mb = {k: v.to(dtype) if v.is_floating_point() else v for k, v in mb.items()}
    mb["loss_mask"][:, :4] = True
    inf = float("inf")
    mb["logprobs"][:, 0], mb["behaviour_logprobs"][:, 0] = -inf, -0.5  # ratio 0
    mb["logprobs"][:, 1], mb["behaviour_logprobs"][:, 1] = -0.5, -inf  # ratio inf
    mb["logprobs"][:, 2], mb["behaviour_logprobs"][:, 2] = -inf, -inf  # ratio 0/0
    mb["logprobs"][:, 3], mb["behaviour_logprobs"][:, 3] = -1e30, 0.0
    mb["proximal_logprobs"][0, :4] = -inf
    mb["reference_logprobs"][1, :4] = -inf
    off = ~mb["loss_mask"]
    for name in ("logprobs", "entropy", "behaviour_logprobs", "proximal_logprobs", "reference_logprobs"):
        mb[name][off] = float("nan")
    algorithm = kind(proximal=proximal, kl_ctl=0.1, entropy_coef=0.1, rejection="sequence")
    loss, grad, grad_entropy, metrics = loss_and_gradients(algorithm, mb)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all() and torch.isfinite(grad_entropy).all()
    assert (grad[off] == 0).all() and (grad_entropy[off] == 0).all()
    assert all(torch.isfinite(v) for v in metrics.values()), metrics


def test_a_nan_from_the_trainer_is_not_hidden() -> None:
    mb = ordinary_microbatch()
    mb["loss_mask"][0, 0] = True
    mb["logprobs"][0, 0] = float("nan")
    assert torch.isnan(loss_and_gradients(GRPO(), mb)[0])


@pytest.mark.parametrize("kind", ALGORITHMS, ids=lambda k: k.__name__)
def test_on_policy_every_correction_is_a_no_op(kind) -> None:
    """Ratio 1 everywhere: plain, decoupled and fully corrected losses agree, and no metric shows a correction."""
    mb = ordinary_microbatch()
    for name in ("logprobs", "proximal_logprobs"):
        mb[name] = mb["behaviour_logprobs"].clone()
    plain = loss_and_gradients(kind(), mb)
    for knobs in (
        {"proximal": "recompute", "importance_sampling": "truncate"},
        {"proximal": "recompute", "importance_sampling": "mask", "importance_level": "sequence"},
        {"proximal": "interpolate", "rejection": "geometric", "rejection_lower": 0.99, "rejection_upper": 1.01},
    ):
        corrected = loss_and_gradients(kind(**knobs), mb)
        torch.testing.assert_close(corrected[0], plain[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(corrected[1], plain[1], rtol=0, atol=1e-12)
        tokens = float(corrected[3]["tokens"])
        assert corrected[3]["rejected"] == corrected[3]["importance_capped"] == 0
        assert float(corrected[3]["importance_weight"]) == pytest.approx(tokens)
        assert float(corrected[3]["max_logp_difference"]) == float(corrected[3]["mismatch_kl"]) == 0.0
        assert corrected[3].get("clip_region", 0) == 0


@settings(max_examples=40, deadline=None)
@given(
    mb=microbatches(),
    kind=st.sampled_from(ALGORITHMS),
    aggregation=aggregations,
    kl=kl_knobs,
    knobs=off_policy_knobs,
    cut=st.integers(0, 4),
)
def test_splitting_a_microbatch_changes_neither_loss_nor_gradient_nor_metrics(
    mb, kind, aggregation, kl, knobs, cut
) -> None:
    algorithm = kind(**aggregation, **kl, **knobs)
    whole = loss_and_gradients(algorithm, mb)
    parts = [
        {k: v[rows] if v.dim() else v for k, v in mb.items()}
        for rows in (slice(0, cut), slice(cut, None))
        if len(mb["logprobs"][rows])
    ]
    results = [loss_and_gradients(algorithm, part) for part in parts]
    torch.testing.assert_close(sum(r[0] for r in results), whole[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.cat([r[1] for r in results]), whole[1], rtol=1e-9, atol=1e-12)
    merged: dict = {}
    for r in results:
        merged = merge(merged, {k: float(v) for k, v in r[3].items()})
    for name, value in whole[3].items():
        assert merged[name] == pytest.approx(float(value), rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize(
    ("knobs", "word"),
    [
        ({"kl_estimator": "k4"}, "kl_estimator"),
        ({"proximal": "old"}, "proximal"),
        ({"rejection": "row"}, "rejection"),
        ({"turn_discount": 1.5}, "turn_discount"),
        ({"aggregation": "constant_length"}, "constant_length"),
        ({"overlong_max_length": 10, "overlong_buffer": 20}, "overlong_buffer"),
        ({"excess_length_price": -0.1}, "excess_length_price"),
        ({"excess_length_cap": 0.0}, "excess_length_cap"),
        ({"rejection_lower": 3.0, "rejection_upper": 2.0}, "rejection_lower"),
        ({"behav_imp_weight_cap": 0.0}, "behav_imp_weight_cap"),
        ({"behav_imp_weight_min": 5.0}, "behav_imp_weight_min"),
        ({"behav_imp_weight_min": float("nan")}, "behav_imp_weight_min"),
        ({"mask_truncated": "row"}, "mask_truncated"),
        ({"adv_norm": {"mean_level": "row"}}, "adv_norm.mean_level='row'"),
        ({"adv_norm": {"eps": 0.0}}, "adv_norm.eps"),
        ({"adv_norm": {"group_size": 8}}, "adv_norm takes mean_level"),
        ({"eps_clip": -0.1}, "eps_clip"),
        ({"c_clip": 0.9}, "c_clip"),
    ],
)
def test_impossible_knobs_are_refused_by_name(knobs, word) -> None:
    with pytest.raises(ValueError, match=word):
        GRPO(**knobs)


@pytest.mark.parametrize("kind", [CISPO, GMPO])
def test_a_dual_clip_is_refused_where_it_means_nothing(kind) -> None:
    with pytest.raises(ValueError, match="c_clip"):
        kind(c_clip=3.0)


@pytest.mark.parametrize(
    ("kind", "knobs", "word"),
    [
        (SAPO, {"tau_pos": 0.0}, "tau_pos"),
        (SAPO, {"tau_neg": float("nan")}, "tau_neg"),
        (ClipCov, {"clip_cov_ratio": 0.0}, "clip_cov_ratio"),
        (ClipCov, {"clip_cov_lb": 5.0}, "clip_cov_lb"),
        (KLCov, {"kl_cov_ratio": 1.5}, "kl_cov_ratio"),
        (KLCov, {"ppo_kl_coef": -1.0}, "ppo_kl_coef"),
    ],
)
def test_impossible_knobs_of_one_algorithm_are_refused_by_name(kind, knobs, word) -> None:
    with pytest.raises(ValueError, match=word):
        kind(**knobs)


def test_the_chosen_tokens_change_the_loss() -> None:
    """Negative control of the covariance methods: without chosen tokens they equal GRPO and the plain ratio."""
    mb = ordinary_microbatch()
    none = mb | {"chosen": torch.zeros_like(mb["chosen"])}
    for algorithm, plain in ((ClipCov(), GRPO(eps_clip=1.0, eps_clip_higher=1.0)), (KLCov(), PolicyGradient())):
        loss, grad, _, metrics = loss_and_gradients(algorithm, none)
        want, want_grad, _, _ = loss_and_gradients(plain, none)
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(grad, want_grad)
        assert metrics["chosen"] == 0
        changed = loss_and_gradients(algorithm, mb)
        moved = (changed[1] != want_grad) & mb["loss_mask"]
        assert moved.any() and not (moved & (mb["chosen"] == 0)).any(), "only chosen tokens are treated differently"
        assert changed[3]["chosen"] == (mb["chosen"] * mb["loss_mask"]).sum()
    assert (loss_and_gradients(ClipCov(), mb)[1][mb["chosen"] > 0] == 0).all()
