"""The base of every algorithm: two hooks, ``advantages`` and ``loss``, and their common settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import off_policy
from .advantages import Level, Spread, advantage_unit, normalised_advantages
from .aggregation import Aggregation, aggregate
from .arguments import check_arguments
from .credit import Credit, finite, turn_credit
from .kl import kl_estimate
from .metrics import common_metrics
from .ratios import bounded, finite_logprobs, log_difference, masked
from .shaping import RewardShaping
from .token_advantages import TokenAdvantages

Metrics = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(RewardShaping, TokenAdvantages):
    """A policy-gradient algorithm. Override ``advantages`` or ``loss`` (or only ``token_loss``) to make your own.

    Rewards: see `shaping.RewardShaping`. Advantages of tokens, and KL: see `token_advantages.TokenAdvantages`.

    Advantages: ``mean_level`` and ``std_level`` in group, batch, none; ``std_of`` in centred, rewards (see
    `advantages.normalised_advantages`); ``leave_one_out``; ``unbiased`` (Bessel's correction of the std); ``norm_eps``.
    Loss: ``aggregation`` in token_mean, sequence_mean, constant_length (with ``constant_length`` tokens);
    ``entropy_coef``. Off-policy: ``proximal`` in behaviour (plain PPO on the sampler's own log-probs), recompute,
    interpolate (decoupled PPO); ``importance_sampling`` none, truncate, mask at ``importance_level`` with weights
    outside ``[behav_imp_weight_min, behav_imp_weight_cap]``; ``rejection`` none, token, sequence, geometric by a ratio,
    or of rows by a measure of `divergences`, outside ``[rejection_lower, rejection_upper]``.

    Raises ValueError, naming the setting, for a value that no algorithm can run with.
    """

    mean_level: Level = "group"
    std_level: Level = "group"
    std_of: Spread = "centred"
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
        check_arguments(self)
        RewardShaping.__post_init__(self)
        TokenAdvantages.__post_init__(self)
        if self.std_of == "rewards" and self.std_level != "none" and self.mean_level not in ("group", self.std_level):
            raise ValueError(
                f"algorithm.std_of=rewards with mean_level={self.mean_level} and std_level={self.std_level} divides by "
                "a std that can be 0: use mean_level=group, the same level for both, or std_of=centred"
            )
        if self.aggregation == "constant_length" and not self.constant_length:
            raise ValueError("algorithm.aggregation=constant_length needs algorithm.constant_length, in tokens")
        if not 0.0 <= self.rejection_lower < self.rejection_upper:
            raise ValueError("algorithm.rejection_lower must be below algorithm.rejection_upper, and not negative")
        if self.kl_ctl < 0:
            raise ValueError(f"algorithm.kl_ctl={self.kl_ctl} must not be negative: it would reward distance")
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
        """True when the micro-batches of all optimizer steps but the first must carry ``proximal_logprobs``: a forward
        pass before the first update."""
        return self.proximal == "recompute"

    # ---- hook 1 ----------------------------------------------------------------------------------------------------
    def advantages(self, rewards: Tensor, group_ids: Tensor, lengths: Tensor) -> Tensor:
        """Advantage of each episode. ``rewards`` [N] float64, shaped; ``group_ids`` [N] int; ``lengths`` [N] int."""
        return normalised_advantages(
            rewards,
            group_ids,
            mean_level=self.mean_level,
            std_level=self.std_level,
            std_of=self.std_of,
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
        if self.needs_proximal:
            microbatch = {**microbatch, "proximal_logprobs": proximal}
        correction = self.importance_weights(proximal, behaviour, logprobs, mask)
        kept, trained = correction.kept, correction.trained
        token_logs = log_difference(logprobs, proximal, mask)
        advantages = self.kl_shaped_advantages(microbatch)

        # Only tokens that train are in a row's ratio: through it, a dropped one would train by the loss of the others.
        ratio_logs, clipped = self.ratio_logs(masked(token_logs, trained), advantages, trained)
        terms = bounded(ratio_logs), finite_logprobs(logprobs, trained), advantages, trained
        token_loss, metrics = self.token_loss(*terms)
        metrics |= clipped
        loss = policy_loss = self._mean(masked(token_loss, trained) * correction.weight, microbatch)
        if self.kl_ctl and self.kl_in == "loss":
            kl = kl_estimate(logprobs, microbatch["reference_logprobs"], kept, self.kl_estimator)
            kl_loss = self._mean(kl, microbatch)
            loss = loss + self.kl_ctl * kl_loss
            metrics |= {"kl_loss": kl_loss.detach()}
        if self.entropy_coef:
            entropy_mean = masked(entropy, kept).sum() / microbatch["n_tokens"].clamp(min=1)
            loss = loss - self.entropy_coef * entropy_mean
        metrics |= correction.metrics | {"importance_weight": correction.ratio}
        metrics |= off_policy.mismatch_metrics(proximal if self.needs_proximal else logprobs, behaviour, mask)
        lag = microbatch["version"] - microbatch["versions"]
        metrics = off_policy.reduced(metrics, mask, lag)
        metrics |= common_metrics(bounded(token_logs), entropy, microbatch)
        if "reference_logprobs" in microbatch:
            kl = kl_estimate(logprobs.detach(), microbatch["reference_logprobs"], mask, self.kl_estimator)
            metrics |= {"kl": kl.sum()}
        metrics |= {"loss": loss.detach(), "policy_loss": policy_loss.detach()}
        return loss, {name: value.detach().float() for name, value in metrics.items()}

    def ratio_logs(self, token_logs: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Metrics]:
        """``log(pi / pi_prox)`` at the level of the ratio in the loss; here each token's own. [B, T] -> [B, T].

        ``token_logs`` is not clamped yet; ``mask`` [B, T] marks the tokens that train, and ``token_logs`` is 0 outside.
        The result is clamped to +-20 afterwards (`ratios.bounded`). Metrics as in ``token_loss``.
        """
        return token_logs, {}

    def token_loss(
        self, ratio_logs: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The core of ``loss``: token losses [B, T] from log(pi / pi_prox), log pi and advantages, all [B, T].

        ``mask`` marks the tokens that train: those that were neither rejected nor masked by an importance weight of 0.
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

        ``episode_rewards``, ``group_ids``, ``lengths`` are per episode; an episode's reward is its outcome plus the own
        rewards of all its turns. ``turn_rewards`` are per row (``episodes`` is the episode of each row): the own
        reward, less penalties, of each of the row's turns, without the outcome. The outcome is credited to the last
        turn of every row, a turn's own reward to its row only (see `turn_credit`). Scaling applies to both; bias, clip
        and length penalties to the episode. A group whose episodes have no signal teaches its turns nothing.

        Raises ValueError for a reward or an advantage that is not a finite number.
        """
        size = torch.as_tensor(lengths, dtype=torch.int64)
        groups = torch.as_tensor(group_ids, dtype=torch.int64)
        shaped = self.shaped_rewards(finite(episode_rewards, "the reward of episode"), size, groups)
        value = finite(self.advantages(shaped, groups, size), "the advantage of episode")
        signal = self.signal(value, groups, self.mean_level)
        value = torch.where(signal, value, 0.0)
        unit = advantage_unit(
            shaped,
            groups,
            mean_level=self.mean_level,
            std_level=self.std_level,
            std_of=self.std_of,
            leave_one_out=self.leave_one_out,
            unbiased=self.unbiased,
            eps=self.norm_eps,
        )
        unit = torch.where(signal, unit, torch.inf)
        own = [finite(row, f"row {k}: the reward of turn") * self.reward_scaling for k, row in enumerate(turn_rewards)]
        return Credit(shaped, value, turn_credit(own, episodes, value, unit, self.turn_discount))

    def teaches(self, episode_rewards: Sequence[float], lengths: Sequence[int]) -> bool:
        """Whether one group's episodes can change a weight: some advantage from their shaped rewards is not 0.

        Groups that cannot are dropped and refilled. A penalty or a length that separates episodes is a signal;
        ``turn_discount`` is not a signal, because it divides an advantage over turns. With ``mean_level=batch`` the
        baseline comes from other groups as well, so every group may have a signal.
        """
        size = torch.as_tensor(lengths, dtype=torch.int64)
        group = torch.zeros_like(size)
        shaped = self.shaped_rewards(finite(episode_rewards, "the reward of episode"), size, group)
        alone = self.advantages(shaped, group, size)
        return self.mean_level == "batch" or bool(self.signal(alone, group, self.mean_level).any())

    def proximal_logprobs(self, logprobs: Tensor, microbatch: Mapping[str, Tensor]) -> Tensor:
        """Log-probs of the proximal policy, around which the ratio is clipped; no gradient. [B, T].

        With ``proximal=recompute``, a micro-batch without the key is of the first optimizer step on its batch: the
        policy is still the proximal policy, and no second pass computes what this one has.
        """
        if self.proximal == "recompute":
            return microbatch.get("proximal_logprobs", logprobs.detach())
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
            n_episodes=mb.get("n_episodes", mb["n_rows"]),  # without the key, each row is an episode
            row_shares=mb.get("row_shares"),
            constant_length=self.constant_length,
        )
