"""Our losses and advantages against TRL's own code: values and gradients agree to 1e-6."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.algorithm import CISPO, GMPO, GRPO, GSPO, RLOO, SAPO, DrGRPO, PolicyGradient
from tau2_lightning.batch.batch import Batch
from tau2_lightning.trajectory import Group, Rollout, Trajectory, Turn
from tests.algorithm import published
from tests.algorithm.cases import loss_and_gradients, microbatches

GRPO_FILE, RLOO_FILE = "trainer/grpo_trainer.py", "trainer/rloo_trainer.py"
GMPO_FILE = "experimental/gmpo/gmpo_trainer.py"
SCORING = "_generate_and_score_completions"
FEW = settings(max_examples=40, deadline=None)


def trl_loss(mb: dict, *, file: str = GRPO_FILE, **settings_: Any) -> tuple[float, np.ndarray]:
    """Loss and gradient of a trainer's own ``_compute_loss``, with a model that returns our log-probs."""
    knobs = {
        "loss_type": "dapo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "delta": None,
        "beta": 0.0,
        "max_completion_length": 100,
        "entropy_coef": 0.0,
        "use_adaptive_entropy": False,
    } | settings_
    logprobs = mb["logprobs"].clone().requires_grad_()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, mb["entropy"], None),
        args=SimpleNamespace(
            delta=knobs["delta"],
            use_bias_correction_kl=False,
            steps_per_generation=1,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
        ),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=False
        ),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm="weights" in mb,
        vllm_importance_sampling_correction="weights" in mb,
        _entropy_bonus_enabled=knobs["entropy_coef"] != 0,
        _metrics=defaultdict(lambda: defaultdict(list)),
        **knobs,
    )
    rows, width = logprobs.shape
    ids = torch.zeros(rows, width, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
        "completion_ids": ids,
        "completion_mask": mb["loss_mask"].to(torch.int64),
        "advantages": mb["advantages"],
        "old_per_token_logps": mb["proximal_logprobs"],
        "ref_per_token_logps": mb["reference_logprobs"],
        "num_items_in_batch": mb["n_tokens"],
    }
    if "weights" in mb:
        inputs["importance_sampling_ratio"] = mb["weights"]
    loss = published.function(file, "_compute_loss")(trainer, None, inputs)
    loss.backward()
    return float(loss), logprobs.grad.numpy()


def check(algorithm: PolicyGradient, mb: dict, **settings_: Any) -> None:
    want, want_grad = trl_loss(mb, **settings_)
    loss, grad, _, _ = loss_and_gradients(algorithm, mb)
    assert float(loss) == pytest.approx(want, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(grad.numpy(), want_grad, rtol=1e-6, atol=1e-6)


def tame(mb: dict) -> dict:
    """Keep log-ratios so small that we clamp none, because TRL does not clamp, and use TRL's row count."""
    mb = dict(mb)
    for name in ("logprobs", "proximal_logprobs", "reference_logprobs"):
        mb[name] = mb["behaviour_logprobs"] + (mb[name] - mb["behaviour_logprobs"]).clamp(-0.9, 0.9)
    mb["n_rows"] = torch.tensor(float(len(mb["logprobs"])), dtype=torch.float64)
    return mb


# TRL has no behaviour weight inside _compute_loss unless it is given: ours is switched off to match.
PLAIN: dict[str, Any] = {"proximal": "recompute", "importance_sampling": "none"}


@FEW
@given(mb=microbatches(), c_clip=st.sampled_from([None, 1.5]))
def test_grpo_token_mean_is_trls_dapo(mb, c_clip) -> None:
    mb = tame(mb)
    if c_clip is not None:  # TRL's delta bounds the ratio whatever the sign; dual clip is for negative advantages
        mb["advantages"] = -mb["advantages"].abs()
    check(GRPO(**PLAIN, c_clip=c_clip), mb, loss_type="dapo", delta=c_clip)


@FEW
@given(mb=microbatches(), kl_ctl=st.sampled_from([0.0, 0.05]))
def test_sequence_mean_with_k3_is_trls_grpo(mb, kl_ctl) -> None:
    check(GRPO(**PLAIN, aggregation="sequence_mean", kl_ctl=kl_ctl), tame(mb), loss_type="grpo", beta=kl_ctl)


@FEW
@given(mb=microbatches())
def test_dr_grpo_is_trls(mb) -> None:
    check(DrGRPO(**PLAIN, constant_length=100), tame(mb), loss_type="dr_grpo", epsilon_high=0.2)


@FEW
@given(mb=microbatches(), coefficient=st.sampled_from([0.01, 1.0]))
def test_the_entropy_bonus_is_trls(mb, coefficient) -> None:
    mb = tame(mb)
    mb["n_tokens"] = mb["loss_mask"].sum().double().clamp(min=1)  # TRL takes its mean over the micro-batch's own tokens
    check(GRPO(**PLAIN, entropy_coef=coefficient), mb, loss_type="dapo", entropy_coef=coefficient)


@FEW
@given(mb=microbatches())
def test_cispo_is_trls(mb) -> None:
    check(CISPO(**PLAIN, eps_clip_higher=0.5), tame(mb), loss_type="cispo", epsilon_high=1.5)


@FEW
@given(mb=microbatches(constant_advantages=True))
def test_gspo_is_trls_sequence_level_grpo(mb) -> None:
    algorithm = GSPO(**PLAIN, eps_clip=0.05, eps_clip_higher=0.1)
    mb = tame(mb)
    mb["loss_mask"][:, 0] = True  # TRL averages the (B, 1) loss with the mask; an empty row is 0/0 there
    check(algorithm, mb, loss_type="grpo", importance_sampling_level="sequence", epsilon_low=0.05, epsilon_high=0.1)


@FEW
@given(mb=microbatches())
def test_sapo_is_trls(mb) -> None:
    check(SAPO(**PLAIN), tame(mb), loss_type="sapo")


@FEW
@given(mb=microbatches(constant_advantages=True), eps=st.sampled_from([0.1, 0.4]), kl_ctl=st.sampled_from([0.0, 0.05]))
def test_gmpo_is_trls(mb, eps, kl_ctl) -> None:
    mb = tame(mb)
    mb["loss_mask"][:, 0] = True  # without a token, a row's loss there is -A
    algorithm = GMPO(**PLAIN, eps_clip=eps, eps_clip_higher=eps, kl_ctl=kl_ctl)
    by_row = mb | {"advantages": mb["advantages"][:, 0]}
    want, want_grad = trl_loss(by_row, file=GMPO_FILE, epsilon_low=eps, epsilon_high=eps, beta=kl_ctl)
    loss, grad, _, _ = loss_and_gradients(algorithm, mb)
    assert float(loss) == pytest.approx(want, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(grad.numpy(), want_grad, rtol=1e-6, atol=1e-6)


@FEW
@given(
    mb=microbatches(),
    correction=st.sampled_from(["truncate", "mask"]),
    level=st.sampled_from(["token", "sequence"]),
    bounds=st.sampled_from([(0.0, 1.05), (0.0, 2.0), (0.8, 1.2), (0.95, 5.0)]),
)
def test_importance_weights_are_trls(mb, correction, level, bounds) -> None:
    mb = tame(mb)
    floor, cap = bounds
    algorithm = GRPO(
        proximal="recompute", importance_sampling=correction, importance_level=level, behav_imp_weight_min=floor,
        behav_imp_weight_cap=cap,
    )  # fmt: skip
    stub = SimpleNamespace(
        vllm_importance_sampling_mode=f"{level}_{correction}",
        vllm_importance_sampling_clip_min=floor or None,
        vllm_importance_sampling_clip_max=cap,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
    )
    names = published.run_statement(
        GRPO_FILE,
        SCORING,
        "if self.use_vllm and self.vllm_importance_sampling_correction:\n    mask =",
        {
            "self": stub,
            "completion_mask": mb["loss_mask"].to(torch.float64),
            "tool_mask": None,
            "old_per_token_logps": mb["proximal_logprobs"],
            "sampling_per_token_logps": mb["behaviour_logprobs"],
        },
    )
    check(algorithm, mb | {"weights": names["vllm_importance_sampling_ratio"]}, loss_type="dapo")


@FEW
@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 4),
    size=st.integers(2, 8),
    std=st.sampled_from(["group", "none", "batch"]),
)
def test_group_advantages_are_trls(seed, groups, size, std) -> None:
    rng = np.random.default_rng(seed)
    rewards = torch.tensor(rng.choice([0.0, 1.0, 0.25], groups * size), dtype=torch.float64)
    names = published.run_statement(
        GRPO_FILE,
        SCORING,
        "if self.multi_objective_aggregation == 'sum_then_normalize'",
        {
            "self": SimpleNamespace(
                multi_objective_aggregation="sum_then_normalize",
                scale_rewards=std,
                reward_weights=torch.ones(1, dtype=torch.float64),
            ),
            "rewards_per_func": rewards[:, None],
            "unscorable_mask": torch.zeros(groups * size, dtype=torch.bool),
            "num_generations": size,
            "device": "cpu",
        },
    )
    ids = torch.arange(groups).repeat_interleave(size)
    # TRL's std is of the rewards themselves; over the group this is the same as of the centred ones.
    got = GRPO(std_level=std, std_of="rewards").advantages(rewards, ids, torch.ones(groups * size))
    np.testing.assert_allclose(got.numpy(), names["advantages"].numpy(), rtol=1e-6, atol=1e-6)


@FEW
@given(seed=st.integers(0, 10_000), groups=st.integers(1, 4), size=st.integers(2, 8))
def test_leave_one_out_is_trls_rloo(seed, groups, size) -> None:
    rewards = torch.tensor(np.random.default_rng(seed).random(groups * size))
    names = published.run_statement(
        RLOO_FILE,
        SCORING,
        "if num_generations > 1:\n    baselines",
        {
            "rewards": rewards,
            "grouped_rewards": rewards.view(-1, size),
            "grouped_sum": rewards.view(-1, size).sum(1, keepdim=True),
            "scorable_counts": torch.full((groups, 1), size),
            "num_generations": size,
        },
    )
    got = RLOO().advantages(rewards, torch.arange(groups).repeat_interleave(size), torch.ones(groups * size))
    np.testing.assert_allclose(got.numpy(), names["advantages"].numpy(), rtol=1e-6, atol=1e-6)


def test_truncated_completions_are_masked_as_trls_are() -> None:
    """Completions that did not end by themselves are masked entirely, and the others not at all."""
    completions = [[5, 6, 2], [5, 6, 7], [2]]
    names = published.run_statement(
        GRPO_FILE,
        SCORING,
        "if self.mask_truncated_completions",
        {
            "self": SimpleNamespace(
                mask_truncated_completions=True, eos_token_ids=[2], _tokenizer=SimpleNamespace(pad_token_id=0)
            ),
            "completion_ids_list": completions,
            "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0]]),
            "tool_mask": None,
            "device": "cpu",
        },
    )
    rollouts = []
    for sample, ids in enumerate(completions):
        n = len(ids)
        turn = Turn(1, n + 1, finish_reason="stop" if ids[-1] == 2 else "length")
        line = Trajectory.of(
            [9, *ids], np.full(n + 1, -0.5, np.float32), np.array([-1] + [0] * n, np.int32), (turn,)
        )  # fmt: skip
        rollouts.append(Rollout("t", "g", sample, float(sample == 0), (line,)))
    batch = Batch.from_groups([Group("g", "t", tuple(rollouts))], GRPO(mask_truncated="episode"), version=0)
    trained = torch.zeros(3, 3, dtype=torch.int64)
    for row in batch.rows:
        trained[row.row_id, : int(row.loss_mask.sum())] = 1
    assert torch.equal(trained, names["completion_mask"].to(torch.int64))
