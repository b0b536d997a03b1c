"""The engine boundary: tokens in, tokens out. The proxy, the parity guard and the tests speak these types only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class SamplingParams:
    """How to sample one completion. ``logprobs`` is the number of alternatives beside the sampled token's own.

    ``stop_token_ids`` end the generation and are part of the returned tokens. ``structured`` is a vLLM structured
    output constraint (``{"json": ...}`` / ``{"grammar": ...}``); it changes the distribution that log-probs speak of.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    structured: Mapping[str, Any] | None = None

    def altered(self, temperature: float) -> str | None:
        """What makes the distribution sampled from another one than softmax(logits / ``temperature``), or None.

        A trainer computes log-probabilities of that one: tokens of any other are nothing to learn from. Beside
        ``structured``, which has names of its own, these are parameters as in ``temperature=0.0, top_p=0.5``.
        """
        plain = {"temperature": temperature, **NEUTRAL}
        found = [f"{name}={value}" for name in plain if (value := getattr(self, name)) != plain[name]]
        if self.logit_bias:
            found.append("logit_bias")
        return ", ".join(found) or None


_SHAPING = ("top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
# What these are when they leave the distribution alone.
NEUTRAL: Mapping[str, float] = {name: getattr(SamplingParams, name) for name in _SHAPING}


@dataclass(frozen=True)
class Generation:
    """One sampled continuation (or, from ``stream``, one chunk of it).

    ``token_ids`` and ``logprobs`` (nats, of the distribution after temperature) have equal length; ``versions`` is
    the weight version of each token. ``finish_reason`` is ``stop``, ``length``, ``abort`` or, in a chunk that is not
    the last, ``""``. ``top_logprobs`` holds per token the alternatives asked for, ``{token_id: logprob}``.

    vLLM reports versions when a request ends: chunks of a stream carry -1 in ``versions``, and the last chunk's
    ``stream_versions`` has the versions of every token of the whole stream.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    finish_reason: str
    top_logprobs: tuple[Mapping[int, float], ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    stream_versions: tuple[int, ...] = ()


class Engine(Protocol):
    """What the proxy needs of an inference engine. Every call raises InfrastructureFault, never a bare error."""

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, session: str | None = None, deadline: float
    ) -> Generation:
        """Sample one continuation of ``token_ids`` within ``deadline`` seconds. Cancelling aborts it in the engine."""
        ...

    def stream(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, session: str | None = None, deadline: float
    ) -> AsyncIterator[Generation]:
        """Sample one continuation, yielding chunks as the engine produces them."""
        ...

    async def score(self, token_ids: Sequence[int], *, deadline: float) -> list[float]:
        """Log-probability (nats, temperature 1) of each token given those before it; T-1 values for T tokens."""
        ...

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens, that the engine takes."""
        ...
