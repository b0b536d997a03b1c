"""The base of every algorithm: two hooks, ``advantages`` and ``loss``, and their common settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import get_args, get_type_hints

import torch
from torch import Tensor

from . import off_policy, rewards
from .advantages import Level, advantage_unit, has_signal, normalised_advantages
from .aggregation import Aggregation, aggregate
from .kl import kl_estimate
from .ratios import finite_logprobs, log_ratio, masked
from .token_advantages import TokenAdvantages

Metrics = dict[str, Tensor]

#: Smaller advantages are rounding errors.
NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Credit:
    """The result of ``credit``: shaped ``rewards`` [N] and ``advantages`` [N] of episodes, and of each row the
    ``turn_advantages`` [n] of its n turns. All float64.
    """

    rewards: Tensor
    advantages: Tensor
    turn_advantages: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(TokenAdvantages):
    """A policy-gradient algorithm. Override ``advantages`` or ``loss`` (or only ``token_loss``) to make your own.

    Rewards: ``reward_bias``, ``reward_scaling``, ``reward_clip``; ``turn_discount`` in [0, 1];
    ``invalid_format_penalty`` taken off per malformed turn; ``overlong_max_length``, ``overlong_buffer``,
    ``overlong_penalty_factor`` (sampled tokens of an episode); ``excess_length_price`` per sampled token that a solved
    episode (reward above 0) is longer than its group's shortest solved one, at most ``excess_length_cap``.
    Advantages: ``mean_level`` and ``std_level`` in group, batch, none; ``leave_one_out``; ``unbiased`` (Bessel's
    correction of the std); ``norm_eps``; of tokens, and KL: see `TokenAdvantages`. Loss: ``aggregation`` in token_mean,
    sequence_mean, constant_length (with ``constant_length`` tokens); ``entropy_coef``. Off-policy: ``proximal`` in
    behaviour (plain PPO on the sampler's own log-probs), recompute, interpolate (decoupled PPO);
    ``importance_sampling`` none, truncate, mask at ``importance_level`` with weights outside
    ``[behav_imp_weight_min, behav_imp_weight_cap]``; ``rejection`` none, token, sequence, geometric by a ratio, or of
    rows by a measure of `divergences`, outside ``[rejection_lower, rejection_upper]``.

    Raises ValueError, naming the setting, for a value that no algorithm can run with.
    """

    reward_bias: float = 0.0
    reward_scaling: float = 1.0
    reward_clip: float | None = None
    turn_discount: float = 1.0
    invalid_format_penalty: float = 0.0
    overlong_max_length: int | None = None
    overlong_buffer: int = 512
    overlong_penalty_factor: float = 1.0
    excess_length_price: float = 0.0
    excess_length_cap: float = 0.5

    mean_level: Level = "group"
    std_level: Level = "group"
    leave_one_out: bool = False
    unbiased: bool = True
    norm_eps: float = 1e-4

    aggregation: Aggregation = "token_mean"
    constant_length: int | None = None
    entropy_coef: float = 0.0

    proximal: off_policy.Proximal = "behaviour"
    importance_sampling: off_policy.Correction = "truncate"
    importance_level: off_policy.Level = "token"
    behav_imp_weight_min: float = 0.0
    behav_imp_weight_cap: float = 5.0
    rejection: off_policy.Rejection = "none"
    rejection_lower: float = 0.0
    rejection_upper: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        hints = get_type_hints(type(self))
        for f in fields(self):
            allowed = [a for a in get_args(hints[f.name]) if isinstance(a, str)]
            if allowed and getattr(self, f.name) not in allowed:
                raise ValueError(f"algorithm.{f.name}={getattr(self, f.name)!r} is not one of {', '.join(allowed)}")
        if not 0.0 <= self.turn_discount <= 1.0:
            raise ValueError(f"algorithm.turn_discount={self.turn_discount} is outside [0, 1]")
        if self.aggregation == "constant_length" and not self.constant_length:
            raise ValueError("algorithm.aggregation=constant_length needs algorithm.constant_length, in tokens")
        if self.overlong_max_length is not None and not 0 < self.overlong_buffer <= self.overlong_max_length:
            raise ValueError("algorithm.overlong_buffer must lie in (0, algorithm.overlong_max_length]")
        if self.excess_length_price < 0 or self.excess_length_cap <= 0:
            raise ValueError("algorithm.excess_length_price must not be negative, algorithm.excess_length_cap positive")
        if not 0.0 <= self.rejection_lower < self.rejection_upper:
            raise ValueError("algorithm.rejection_lower must be below algorithm.rejection_upper, and not negative")
        if self.behav_imp_weight_cap <= 0:
            raise ValueError("algorithm.behav_imp_weight_cap must be positive")
        if not 0.0 <= self.behav_imp_weight_min < self.behav_imp_weight_cap:
            raise ValueError("algorithm.behav_imp_weight_min must lie in [0, algorithm.behav_imp_weight_cap)")

    @property
    def needs_reference(self) -> bool:
        """True when the micro-batches must carry ``reference_logprobs``."""
        return self.kl_ctl != 0.0

    @property
    def needs_proximal(self) -> bool:
        """True when the micro-batches must carry ``proximal_logprobs``: a forward pass before the first update."""
        return self.proximal == "recompute"

    # ---- hook 1 ----------------------------------------------------------------------------------------------------
    def advantages(self, rewards: Tensor, group_ids: Tensor, lengths: Tensor) -> Tensor:
        """Advantage of each episode. ``rewards`` [N] float64, shaped; ``group_ids`` [N] int; ``lengths`` [N] int."""
        return normalised_advantages(
            rewards,
            group_ids,
            mean_level=self.mean_level,
            std_level=self.std_level,
            leave_one_out=self.leave_one_out,
            unbiased=self.unbiased,
            eps=self.norm_eps,
        )

    # ---- hook 2 ----------------------------------------------------------------------------------------------------
    def loss(self, logprobs: Tensor, entropy: Tensor, microbatch: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch, a share of the step's loss, and its metrics as sums (``max_*``: maxima).

        ``logprobs`` and ``entropy`` are [B, T] float32 with gradient; the keys of ``microbatch`` are described in
        docs/architecture.md.
        """
        mask, behaviour = microbatch["loss_mask"], microbatch["behaviour_logprobs"]
        proximal = self.proximal_logprobs(logprobs, microbatch)
        ratio_logs = log_ratio(logprobs, proximal, mask)
        correction = self.importance_weights(proximal, behaviour, logprobs, mask)
        advantages = self.kl_shaped_advantages(microbatch)

        token_loss, metrics = self.token_loss(ratio_logs, finite_logprobs(logprobs, mask), advantages, mask)
        loss = policy_loss = self._mean(masked(token_loss, correction.kept) * correction.weight, microbatch)
        if self.kl_ctl and self.kl_in == "loss":
            kl = kl_estimate(logprobs, microbatch["reference_logprobs"], mask, self.kl_estimator)
            kl_loss = self._mean(kl, microbatch)
            loss = loss + self.kl_ctl * kl_loss
            metrics |= {"kl_loss": kl_loss.detach()}
        if self.entropy_coef:
            entropy_mean = masked(entropy, mask).sum() / microbatch["n_tokens"].clamp(min=1)
            loss = loss - self.entropy_coef * entropy_mean
        metrics |= correction.metrics | {"importance_weight": correction.ratio}
        metrics |= off_policy.mismatch_metrics(proximal if self.needs_proximal else logprobs, behaviour, mask)
        lag = microbatch["version"] - microbatch["versions"]
        metrics = off_policy.reduced(metrics, mask, lag)
        metrics |= self._common_metrics(ratio_logs, logprobs, entropy, microbatch)
        metrics |= {"loss": loss.detach(), "policy_loss": policy_loss.detach()}
        return loss, {name: value.detach().float() for name, value in metrics.items()}

    def token_loss(
        self, ratio_logs: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The core of ``loss``: token losses [B, T] from log(pi / pi_prox), log pi and advantages, all [B, T].

        Its metrics are [B, T], one value per token: ``loss`` sums them over the trained tokens.
        """
        return -advantages * ratio_logs.exp(), {}

    # ---- what the hooks are made of -------------------------------------------------------------------------------
    def credit(
        self,
        turn_rewards: Sequence[Sequence[float]],
        episodes: Sequence[int],
        episode_rewards: Sequence[float],
        group_ids: Sequence[int],
        lengths: Sequence[int],
    ) -> Credit:
        """Turn raw episode and turn rewards into advantages.

        ``episode_rewards``, ``group_ids``, ``lengths`` are per episode. ``turn_rewards`` are per row (``episodes`` is
        the episode of each row), one value per turn *before* the episode's outcome; the rest of the episode's reward
        is credited to the last turn. Scaling applies to both; bias, clip and length penalties to the episode.
        """
        size = torch.as_tensor(lengths, dtype=torch.int64)
        groups = torch.as_tensor(group_ids, dtype=torch.int64)
        shaped = self.shaped_rewards(torch.as_tensor(episode_rewards, dtype=torch.float64), size, groups)
        value = self.advantages(shaped, groups, size)
        unit = advantage_unit(shaped, groups, std_level=self.std_level, unbiased=self.unbiased, eps=self.norm_eps)
        if self.mean_level == "group":  # without variance in the group, its turns have no advantage either
            unit = torch.where(has_signal(shaped, groups), unit, torch.inf)
        turns = []
        for e, own in zip(episodes, turn_rewards, strict=True):
            chain = torch.as_tensor(own, dtype=torch.float64) * self.reward_scaling
            if len(chain):
                chain[-1] = shaped[e] - chain[:-1].sum()
                chain = rewards.turn_advantages(chain, value[e], unit[e], self.turn_discount)
            turns.append(chain)
        return Credit(shaped, value, tuple(turns))

    def shaped_rewards(self, raw: Tensor, lengths: Tensor, group_ids: Tensor) -> Tensor:
        """Rewards after length penalties, then bias, scaling and clip. [N], [N] int, [N] int -> [N]."""
        solved = raw > 0
        if self.overlong_max_length is not None:
            raw = raw + rewards.overlong_penalty(
                lengths,
                max_length=self.overlong_max_length,
                buffer=self.overlong_buffer,
                factor=self.overlong_penalty_factor,
            )
        if self.excess_length_price:  # on solved episodes only: otherwise giving up early would be rewarded
            raw = raw + rewards.excess_length_penalty(
                lengths, solved, group_ids, price=self.excess_length_price, cap=self.excess_length_cap
            )
        return rewards.scale_rewards(raw, bias=self.reward_bias, scaling=self.reward_scaling, clip=self.reward_clip)

    def teaches(self, episode_rewards: Sequence[float], lengths: Sequence[int]) -> bool:
        """Whether one group's episodes can change a weight: some advantage from their shaped rewards is not 0.

        Groups that cannot are dropped and refilled. A penalty or a length that separates episodes is a signal;
        ``turn_discount`` is not a signal, because it divides an advantage over turns. With ``mean_level=batch`` the
        baseline comes from other groups as well, so every group may have a signal.
        """
        size = torch.as_tensor(lengths, dtype=torch.int64)
        group = torch.zeros_like(size)
        shaped = self.shaped_rewards(torch.as_tensor(episode_rewards, dtype=torch.float64), size, group)
        alone = self.group_alone(self.advantages(shaped, group, size), self.mean_level)
        return self.mean_level == "batch" or bool((alone.abs() > NEGLIGIBLE).any())

    def proximal_logprobs(self, logprobs: Tensor, microbatch: Mapping[str, Tensor]) -> Tensor:
        """Log-probs of the proximal policy, around which the ratio is clipped; no gradient. [B, T]."""
        if self.proximal == "recompute":
            return microbatch["proximal_logprobs"]
        behaviour = microbatch["behaviour_logprobs"]
        if self.proximal == "behaviour":
            return behaviour
        return off_policy.interpolated_proximal(logprobs, behaviour, microbatch["versions"], microbatch["version"])

    def importance_weights(
        self, proximal: Tensor, behaviour: Tensor, logprobs: Tensor, mask: Tensor
    ) -> off_policy.Weights:
        """Importance weights of tokens. With ``proximal=behaviour`` the ratio is pi / pi_behaviour, so w = 1."""
        coupled = self.proximal == "behaviour"
        return off_policy.behaviour_weights(
            logprobs if coupled else proximal,
            behaviour,
            mask,
            correction="none" if coupled else self.importance_sampling,
            level=self.importance_level,
            floor=self.behav_imp_weight_min,
            cap=self.behav_imp_weight_cap,
            rejection=self.rejection,
            rejection_lower=self.rejection_lower,
            rejection_upper=self.rejection_upper,
        )

    def _mean(self, values: Tensor, mb: Mapping[str, Tensor]) -> Tensor:
        return aggregate(
            values,
            mb["loss_mask"],
            self.aggregation,
            n_tokens=mb["n_tokens"],
            n_rows=mb["n_rows"],
            constant_length=self.constant_length,
        )

    def _common_metrics(
        self, ratio_logs: Tensor, logprobs: Tensor, entropy: Tensor, mb: Mapping[str, Tensor]
    ) -> Metrics:
        mask = mb["loss_mask"]
        ratio = ratio_logs.detach().exp()
        metrics = {
            "tokens": mask.sum(),
            "rows": mask.any(-1).sum(),
            "steps": mask.sum() / mb["n_tokens"].clamp(min=1),  # adds up to 1 over an optimizer step
            "entropy": masked(entropy.detach(), mask).sum(),
            "ratio": masked(ratio, mask).sum(),
            "max_ratio": masked(ratio, mask).amax(),
            "ppo_kl": -ratio_logs.detach().sum(),
        }
        if "reference_logprobs" in mb:
            metrics["kl"] = kl_estimate(logprobs.detach(), mb["reference_logprobs"], mask, self.kl_estimator).sum()
        return metrics
