"""Records the losses, gradients and advantages of AReaL and verl on fixed inputs, for ``test_against_peers.py``.

    git clone https://github.com/inclusionAI/AReaL; git clone https://github.com/volcengine/verl
    python -m tests.algorithm.record_peers AReaL verl

Their functions are taken from their sources and run unchanged, without importing the packages around them.
"""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).with_name("peers.json")
PLAIN_DECORATORS = ("dataclass", "staticmethod", "property", "torch.no_grad()")


def functions(file: Path, *names: str, **scope: Any) -> SimpleNamespace:
    """The named functions, methods and classes of a source file, in a scope of torch and ``scope``."""
    body = [ast.parse("from __future__ import annotations").body[0]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
            node.decorator_list = [d for d in node.decorator_list if ast.unparse(d) in PLAIN_DECORATORS]
            body.append(node)
    found: dict[str, Any] = {"torch": torch, "np": np, "math": math, "defaultdict": defaultdict, **scope}
    found |= {"dataclass": dataclass, "Any": Any, "dist": torch.distributed}
    exec(compile(ast.fix_missing_locations(ast.Module(body=body, type_ignores=[])), str(file), "exec"), found)
    return SimpleNamespace(**found)


def inputs() -> dict[str, Any]:
    """Four episodes of one turn in two groups, ragged, and the log-probs of four policies; label-aligned."""
    rng = np.random.default_rng(2026)
    lengths, width = [10, 7, 9, 12], 12
    mask = [[3 <= t + 1 < n for t in range(width)] for n in lengths]
    behaviour = -rng.exponential(1.0, (4, width)) - 0.05
    near = lambda by: (behaviour + rng.uniform(-by, by, behaviour.shape)).tolist()  # noqa: E731
    return {
        "lengths": lengths, "mask": mask, "groups": [0, 0, 1, 1], "rewards": [1.0, 0.0, 0.25, 1.0],
        "behaviour": behaviour.tolist(), "proximal": near(0.5), "logprobs": near(0.6), "reference": near(0.5),
        "advantages": rng.normal(0, 1.5, behaviour.shape).tolist(), "far": near(2.5),
    }  # fmt: skip


def tensors(given: dict[str, Any]) -> SimpleNamespace:
    floats = ("behaviour", "proximal", "logprobs", "reference", "advantages", "far")
    out = {name: torch.tensor(given[name], dtype=torch.float64) for name in floats}
    out["mask"] = torch.tensor(given["mask"])
    out["row_advantages"] = out["advantages"][:, :1].expand(4, 12).clone()
    return SimpleNamespace(**out)


def with_gradient(t: SimpleNamespace, loss: Any) -> dict[str, Any]:
    """Return the value and the gradient of ``loss(logprobs)``."""
    logprobs = t.logprobs.clone().requires_grad_()
    value = loss(logprobs)
    value.backward()
    return {"loss": value.item(), "gradient": logprobs.grad.tolist()}


def areal(root: Path, given: dict[str, Any]) -> dict[str, Any]:
    t = tensors(given)
    data = functions(root / "areal/utils/data.py", "Normalization", "KLEstimator")
    actor = functions(root / "areal/trainer/ppo/actor.py", "_compute_advantages")
    losses = functions(
        root / "areal/utils/functional/functional.py", "apply_rejection_sampling", "_check_bounds", "sapo_loss_fn",
        "RejectionSamplingResult", "ppo_actor_loss_fn", "_compute_sequence_level_ratio_and_advantages",
        KLEstimator=data.KLEstimator,
    )  # fmt: skip
    norm = SimpleNamespace(
        mean_level="batch", std_level="batch", mean_leave1out=False, std_unbiased=True, group_size=1, eps=1e-5
    )
    config = SimpleNamespace(overlong_reward_penalty=False, use_decoupled_loss=True, recompute_logprob=True)
    ppo = SimpleNamespace(
        config=config, reward_bias=-0.5, reward_scaling=10.0, reward_clip=20.0, reward_norm=None, kl_ctl=0.0,
        kl_estimator=data.KLEstimator("k1"), mask_no_eos_with_zero=False, discount=1.0, gae_lambda=1.0,
        adv_norm=data.Normalization(norm),
    )  # fmt: skip
    back = lambda x: torch.roll(x, 1, -1)  # noqa: E731  their columns are aligned to tokens, ours to labels
    attention = torch.arange(12)[None] < torch.tensor(given["lengths"])[:, None]
    batch = actor._compute_advantages(
        ppo,
        {
            "input_ids": torch.zeros(4, 12, dtype=torch.int64), "attention_mask": attention.long(),
            "loss_mask": back(t.mask).long(), "logprobs": back(t.behaviour).float(), "prox_logp": t.proximal.float(),
            "rewards": torch.tensor(given["rewards"]),
        },
    )  # fmt: skip
    reject = lambda **how: SimpleNamespace(  # noqa: E731
        **{"level": "token", "metric": "ratio", "agg": "mean", "action": "mask", "lower": None} | how
    )
    recipe = lambda logprobs: losses.ppo_actor_loss_fn(  # noqa: E731
        logprobs, t.far, t.behaviour, batch["advantages"].double(), 0.4, t.mask, rejection_sampling=reject(upper=5.0)
    )[0]
    found = {
        "advantages": (batch["advantages"] * t.mask).tolist(),
        "recipe": with_gradient(t, recipe),
        "sapo": with_gradient(
            t, lambda logprobs: losses.sapo_loss_fn(logprobs, t.proximal, t.advantages, 1.0, 1.05, t.mask)[0]
        ),
        "rejection": {},
    }
    for name, how in {
        "max": reject(level="sequence", agg="max", lower=1.5, upper=8.0),
        "mean_k2": reject(level="sequence", metric="kl_k2", upper=0.9),
        "max_k2": reject(level="sequence", metric="kl_k2", agg="max", upper=2.5),
    }.items():
        kept = losses.apply_rejection_sampling(t.far, t.behaviour, t.mask, None, how).loss_mask
        found["rejection"][name] = {"lower": how.lower or 0.0, "upper": how.upper, "kept": kept.tolist()}
    return found


def verl(root: Path, given: dict[str, Any]) -> dict[str, Any]:
    t = tensors(given)
    tools = functions(
        root / "verl/utils/torch_functional.py", "masked_sum", "masked_mean", "masked_var", "masked_whiten"
    )
    core = functions(
        root / "verl/trainer/ppo/core_algos.py", "agg_loss", "compute_policy_loss_geo_mean", "compute_policy_loss_sapo",
        "compute_policy_loss_clip_cov", "compute_policy_loss_kl_cov", "compute_reinforce_plus_plus_outcome_advantage",
        "compute_reinforce_plus_plus_baseline_outcome_advantage", verl_F=tools, ActorConfig=SimpleNamespace,
        AlgoConfig=type(None),
    )  # fmt: skip
    helper = functions(
        root / "verl/trainer/ppo/rollout_corr_helper.py", "compute_rollout_rejection_mask",
        "_parse_rollout_rs_thresholds", verl_F=tools, SAFETY_BOUND=20.0, compute_rs_metrics=lambda **_: {},
        TOKEN_LEVEL_ROLLOUT_RS_OPTIONS={"token_k1", "token_k2", "token_k3"},
        SUPPORTED_ROLLOUT_RS_OPTIONS={"seq_mean_k2", "seq_mean_k3", "seq_max_k2", "seq_max_k3"},
    )  # fmt: skip
    cov = SimpleNamespace(clip_cov_ratio=1.0, clip_cov_lb=0.3, clip_cov_ub=2.0, kl_cov_ratio=0.2, ppo_kl_coef=0.7)
    config = SimpleNamespace(
        clip_ratio=0.4, clip_ratio_low=0.4, clip_ratio_high=0.4, policy_loss=cov, global_batch_info={}, tau_pos=1.0,
        tau_neg=1.05, gamma=1.0,
    )  # fmt: skip
    wide = SimpleNamespace(**vars(config) | {"clip_ratio_low": 1.0, "clip_ratio_high": 5.0})
    mask = t.mask.to(torch.float64)

    def loss(name: str, advantages: Tensor, how: SimpleNamespace) -> dict[str, Any]:
        run = getattr(core, f"compute_policy_loss_{name}")
        return with_gradient(t, lambda logprobs: run(t.proximal, logprobs, advantages, mask, config=how)[0])

    rewards = torch.zeros(4, 12, dtype=torch.float64)
    for row, (n, reward) in enumerate(zip(given["lengths"], given["rewards"], strict=True)):
        rewards[row, n - 2] = reward
    kl = (t.behaviour - t.reference) * mask
    plus_plus = core.compute_reinforce_plus_plus_outcome_advantage(rewards - 0.2 * kl, mask, config)[0]
    groups = np.array(given["groups"])
    baseline = core.compute_reinforce_plus_plus_baseline_outcome_advantage(rewards.clone(), mask, groups)[0]
    found: dict[str, Any] = {
        "reinforce_pp": plus_plus.tolist(),
        "reinforce_pp_baseline": baseline.tolist(),
        "gmpo": loss("geo_mean", t.row_advantages, config),
        "gmpo_tokens": loss("geo_mean", t.advantages, config),
        "sapo": loss("sapo", t.advantages, config),
        "clip_cov": loss("clip_cov", t.advantages, wide),
        "kl_cov": loss("kl_cov", t.advantages.clone(), config),
        "rejection": {},
    }
    for name, upper in {"mean_k2": 0.9, "mean_k3": 1.0, "max_k2": 2.5, "max_k3": 2.0}.items():
        kept, _ = helper.compute_rollout_rejection_mask(t.far - t.behaviour, mask, f"seq_{name}", upper)
        found["rejection"][name] = {"lower": 0.0, "upper": upper, "kept": (kept > 0).tolist()}
    return found


def main(areal_root: str, verl_root: str) -> None:
    given = inputs()
    commits = {
        name: subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        for name, root in (("AReaL", areal_root), ("verl", verl_root))
    }
    recorded = {"AReaL": areal(Path(areal_root), given), "verl": verl(Path(verl_root), given)}
    FILE.write_text(json.dumps({"commits": commits, "inputs": given, **recorded}, indent=None) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
