"""The numbers of one training step under the names used by prime-rl, TRL and verl (docs/metrics.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from tau2_lightning.algorithm import dashboard, finalise
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.experts import replayed_share
from tau2_lightning.rollout.collect.collector import Collection
from tau2_lightning.trajectory import Group


def loss_metrics(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Dashboard numbers from the reduced sums of the loss."""
    return dashboard(finalise({name: float(value) for name, value in sums.items()}))


def update_metrics(batch: Batch, norms: Sequence[Tensor], seconds: float, skipped: int = 0) -> dict[str, float]:
    """Numbers about the batch that was trained on for ``seconds``, and the mean of its optimizer steps' gradient norms.

    ``norms`` is empty when no minibatch had a signal, or a finite gradient; the norm is 0 then. ``skipped`` counts the
    steps that were left out because their gradient was not finite.
    """
    tokens = sum(len(row) for row in batch.rows)
    return {f"batch/{name}": float(value) for name, value in batch.statistics.items()} | {
        "optim/grad_norm": float(torch.stack(list(norms)).mean()) if norms else 0.0,
        "optim/skipped_steps": float(skipped),
        "time/forward_backward": seconds,
        "perf/throughput": tokens / seconds if seconds else 0.0,
    }


def router_metrics(batch: Batch) -> dict[str, float]:
    """The share of the batch that is computed with the experts that the engine chose (`strategy.replay`)."""
    return {"router/replayed": replayed_share(row.leaf for row in batch.rows)}


def rollout_metrics(
    collection: Collection,
    seconds: float,
    retried: Mapping[str, int] | None = None,
    signal: Callable[[Group], bool] = attrgetter("has_signal"),
) -> dict[str, float]:
    """Numbers about the episodes of one batch: all of them, also those of groups that were filtered out.

    ``retried`` counts faults by ``component:cause``, also those after which a second try succeeded. ``signal`` says
    whether a group can teach (see ``CollectPlan``).
    """
    groups = collection.all_groups
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    outcomes = [rollout.outcome for rollout in rollouts if rollout.outcome is not None]
    rewards = np.array([rollout.reward for rollout in rollouts])
    sampled = sum(rollout.sampled_tokens for rollout in rollouts)
    turns = [turn for rollout in rollouts for row in rollout.trajectories for turn in row.turns]
    metrics = {
        "groups/collected": float(len(groups)),
        "groups/kept": float(len(collection.groups)),
        "groups/dropped_all_pass": float(sum(_all_above(group, 0.5) for group in collection.dropped)),
        "groups/dropped_all_fail": float(sum(not _all_above(group, 0.5) for group in collection.dropped)),
        "groups/lost": float(collection.lost),
        "dispatcher/errored/all": float(sum(collection.excluded.values())),
        "dispatcher/attempts_failed": float(sum((retried or {}).values())),
        "session/branches": float(sum(len(rollout.trajectories) - 1 for rollout in rollouts)),
        "num_tokens": float(sampled),
        "time/rollout": seconds,
        "perf/rollout_tokens_per_second": sampled / seconds if seconds else 0.0,
        "perf/episodes_per_second": len(rollouts) / seconds if seconds else 0.0,
    }
    if rollouts:  # without rollouts there are no means
        metrics |= {
            "reward/mean": float(rewards.mean()),
            "reward/std": float(rewards.std()),
            "frac_reward_zero_std": _share([not signal(group) for group in groups]),
            "effective/num_turns/mean": len(turns) / len(rollouts),
        }
    if turns:
        metrics |= {
            "completions/mean_length": sampled / len(turns),
            "completions/clipped_ratio": _share([turn.finish_reason == "length" for turn in turns]),
            "invalid_format_rate": _share([turn.invalid_format for turn in turns]),
        }
    metrics |= {f"dispatcher/errored/{cause}": float(n) for cause, n in sorted(collection.excluded.items())}
    metrics |= domain_metrics(collection)
    if outcomes:
        calls = sum(outcome.tool_calls for outcome in outcomes)
        mistakes: Counter[str] = Counter()
        user_faults: Counter[str] = Counter()
        for outcome in outcomes:
            mistakes.update(outcome.mistakes)
            user_faults.update(outcome.user_faults)
        metrics |= {
            "transfer_rate": _share([outcome.transferred for outcome in outcomes]),
            "transfer_rate/unasked": _share([o.transferred for o in outcomes if not o.transfer_expected]),
            "tools/call_frequency": calls / max(1, len(turns)),
            "user_faults": _share([bool(outcome.user_faults) for outcome in outcomes]),
            "tools/failure_frequency": sum(outcome.tool_errors for outcome in outcomes) / max(1, calls),
        }
        metrics |= {f"mistakes/{kind}": n / len(outcomes) for kind, n in sorted(mistakes.items())}
        metrics |= {f"user_faults/{kind}": n / len(outcomes) for kind, n in sorted(user_faults.items())}
    return metrics


def domain_metrics(collection: Collection) -> dict[str, float]:
    """Numbers of each domain's groups of one batch; none when all are of one domain."""
    domains = sorted({group.domain for group in collection.all_groups})
    metrics: dict[str, float] = {}
    for domain in domains if len(domains) > 1 else ():
        groups = [group for group in collection.all_groups if group.domain == domain]
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        metrics |= {
            f"rollout/{domain}/groups": float(len(groups)),
            f"rollout/{domain}/groups_kept": float(sum(group.domain == domain for group in collection.groups)),
            f"rollout/{domain}/excluded": float(sum(sum(group.excluded.values()) for group in groups)),
            f"rollout/{domain}/num_tokens": float(sum(rollout.sampled_tokens for rollout in rollouts)),
        }
        if rollouts:
            metrics[f"rollout/{domain}/reward"] = float(np.mean([rollout.reward for rollout in rollouts]))
    return metrics


def overlap_metrics(collection: Collection, *, waited: float, step: float, engine_idle: float) -> dict[str, float]:
    """The overlap of collection and training. ``waited``: seconds spent waiting for the batch. ``step``: seconds since
    the previous one."""
    return {
        "time/wait_for_batch": waited,
        "idle/trainer": waited / step if step else 0.0,
        "idle/engine": engine_idle,
        "off_policy/dropped": float(collection.queue.dropped),
        "queue/ready": float(collection.queue.ready),
        "queue/running": float(collection.queue.running),
    }


def model_metrics(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """The use of the environment's models between two counts (`environment.use_of_models`): tokens, cost, waits."""
    return {f"models/{name}": value - before.get(name, 0.0) for name, value in now.items()}


def _all_above(group: Group, value: float) -> bool:
    return all(reward > value for reward in group.rewards)


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
