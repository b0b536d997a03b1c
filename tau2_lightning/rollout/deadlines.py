"""Time limits of completions, episodes and batches, and the number of concurrent episodes, if they are not given.

r is ``rollout.tokens_per_second``, the slowest rate at which an engine continues one sequence. q is the number of
requests that share one sequence slot of an engine: ceil(concurrent / (engines x max_num_seqs)).

- completion: 120 s + q x max_new_tokens / r
- episode: limit of a completion + q x sampled / r + turns x (2 s, or 12 s with a model as the user). An episode has at
  most max_steps / 2 turns. They sample at most turns x max_new_tokens, and not more than the context holds (four times
  as much under ``history_policy=branch``, where thoughts are removed from the context again).
- batch or validation: (all attempts of an episode) x ceil(episodes / concurrent), at least half an hour. All attempts
  are (retries + 1) x (episode + 10 s to end it) and the pauses between them.
- comparison of the parity guard: (tokens of all its rows) / (prompt tokens per second), at least
  ``weight_sync.timeout``. A sequence of tokens is scored faster than it is sampled: at 4 x r on a CPU, 100 x r on GPUs.

A computed limit is never longer than a given limit that contains it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.launch.cluster import placement_of
from tau2_lightning.launch.placement import Placement

CPU_RATE, GPU_RATE = 2.0, 10.0
# Tokens of a prompt that an engine computes while it samples one: a CPU in software bfloat16 reaches the first.
CPU_PROMPT, GPU_PROMPT = 4.0, 100.0
FIRST_TOKEN_SECONDS = 120.0
TURN_SECONDS, USER_SECONDS = 2.0, 10.0
LEAST_BATCH_SECONDS = 1800.0
EPISODES_PER_CORE = 64
UNWIND_SECONDS = 10.0  # for an attempt whose time is over to end


@dataclass(frozen=True)
class Limits:
    """Limits of a run: ``request``, ``episode`` and ``collect`` (None: computed by ``batch``) in seconds, ``rate`` in
    tokens per second of one sequence, ``concurrent`` episodes over ``engines`` engines, ``prompt_rate`` in tokens per
    second of one engine."""

    engines: int
    concurrent: int
    rate: float
    request: float
    episode: float
    collect: float | None
    retries: int
    prompt_rate: float = CPU_PROMPT * CPU_RATE

    @classmethod
    def of(cls, config: RunConfig, placement: Placement | None = None) -> Limits:
        """The limits of ``config``. ``placement`` is computed from it by default. Raises AllocationError when the
        allocation cannot be placed."""
        placement = placement or placement_of(config)
        r, g = config.rollout, config.gconfig
        engines = len(r.engine_urls) or len(placement.engines) or 1
        concurrent = r.max_concurrent_rollouts or min(engines * r.max_num_seqs, EPISODES_PER_CORE * usable_cores())
        rate = r.tokens_per_second or (CPU_RATE if placement.on_cpu else GPU_RATE)
        seconds_per_token = ceil(concurrent / (engines * r.max_num_seqs)) / rate
        views = config.by_domain.values()
        turns = max(view.econfig.max_steps for view in views) // 2
        with_user = any(view.econfig.user == "llm" and not view.econfig.solo_mode for view in views)
        request = FIRST_TOKEN_SECONDS + g.max_new_tokens * seconds_per_token
        sampled = min(turns * g.max_new_tokens, g.max_tokens * (4 if r.history_policy == "branch" else 1))
        episode = request + sampled * seconds_per_token + turns * (TURN_SECONDS + with_user * USER_SECONDS)
        episode = r.episode_timeout or min(episode, r.collect_timeout or episode)
        return cls(
            engines,
            concurrent,
            rate,
            request=r.request_timeout or min(request, episode),
            episode=episode,
            collect=r.collect_timeout,
            retries=r.retries,
            prompt_rate=rate * (CPU_PROMPT if placement.on_cpu else GPU_PROMPT),
        )

    def batch(self, episodes: int) -> float:
        """Seconds for ``episodes`` episodes, each with its retries."""
        if self.collect is not None:
            return self.collect
        rounds = ceil(max(1, episodes) / self.concurrent)
        return max(LEAST_BATCH_SECONDS, self.all_attempts * rounds)

    def validation(self, parts: Sequence[tuple[float | None, int]]) -> tuple[float, float]:
        """Seconds for a validation of ``parts``, which are played at the same time: (given time limit, episodes).

        The first number is for parts without a limit: what all would need one after the other. The second is the time
        at which the last part ends.
        """
        whole = sum(self.batch(episodes) if timeout is None else timeout for timeout, episodes in parts)
        return whole, max(whole if timeout is None else timeout for timeout, _ in parts)

    def scoring(self, tokens: int, least: float) -> float:
        """Seconds in which an engine gives the log-probs of ``tokens`` tokens; ``least`` for few."""
        return max(least, tokens / self.prompt_rate)

    @property
    def all_attempts(self) -> float:
        """Seconds that one episode may take with all its retries."""
        pauses = sum(map(pause_before_retry, range(self.retries)))
        return (self.retries + 1) * (self.episode + UNWIND_SECONDS) + pauses


def pause_before_retry(attempt: int) -> float:
    """Seconds between attempt ``attempt`` of an episode (from 0), which has failed, and the next one."""
    return min(0.5 * 2.0 ** min(attempt, 10), 10.0)


def usable_cores() -> int:
    """Cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0))


def training_episodes(config: RunConfig) -> int:
    """The largest number of episodes of one batch, those of replaced groups included."""
    return (config.train_dataset.batch_size + config.rollout.max_refill_groups) * config.gconfig.n_samples
