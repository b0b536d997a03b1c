"""The interface of an inference engine: tokens in, tokens out. The proxy and the parity guard use only these types."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tau2_lightning.segments import Experts

#: An engine may spend this long between two tokens on the prompt of another request.
PROGRESS_SECONDS = 60.0


def progresses(tokens: int, idle_seconds: float) -> bool:
    """Whether an engine that has sampled ``tokens``, the last one ``idle_seconds`` ago, still produces them."""
    return tokens > 0 and idle_seconds <= PROGRESS_SECONDS


class EngineRejected(ValueError):
    """The engine refuses the request, and would refuse a retry: too long, out of range, unknown parameter."""


@dataclass(frozen=True)
class SamplingParams:
    """How to sample one completion.

    ``logprobs`` is the number of alternatives to report beside each sampled token. ``stop_token_ids`` end the
    generation and are part of the returned tokens. ``structured`` is a vLLM structured output constraint
    (``{"json": ...}`` or ``{"grammar": ...}``); log-probs are then those of the constrained distribution.
    ``experts_from`` asks for the experts that the model chose at this and all later positions of the prompt.
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
    experts_from: int | None = None

    @property
    def penalised(self) -> bool:
        """Whether earlier tokens change the probability of a token (one of the three penalties is set)."""
        return any(getattr(self, name) != NEUTRAL[name] for name in NEUTRAL if name.endswith("penalty"))

    def altered(self, temperature: float) -> str | None:
        """The parameters that make the sampled distribution differ from softmax(logits / ``temperature``), or None.

        The trainer computes log-probs of that softmax, so tokens of any other distribution cannot be trained on. The
        result looks like ``temperature=0.0, top_p=0.5``. ``structured`` is not considered here.
        """
        plain = {"temperature": temperature, **NEUTRAL}
        found = [f"{name}={value}" for name in plain if (value := getattr(self, name)) != plain[name]]
        if self.logit_bias:
            found.append("logit_bias")
        return ", ".join(found) or None


_SHAPING = ("top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
# The values with which these parameters do not change the distribution.
NEUTRAL: Mapping[str, float] = {name: getattr(SamplingParams, name) for name in _SHAPING}


@dataclass(frozen=True)
class Generation:
    """One sampled continuation (or, from ``stream``, one chunk of it).

    ``token_ids`` and ``logprobs`` (nats, of the distribution after temperature) have equal length; ``versions`` is
    the weight version of each token. ``finish_reason`` is ``stop``, ``length`` or ``abort``, and ``""`` in every chunk
    but the last. ``top_logprobs`` holds the requested alternatives of each token, ``{token_id: logprob}``.

    vLLM reports versions when a request ends: chunks of a stream carry -1 in ``versions``, and ``stream_versions`` of
    the last chunk has the versions of all tokens of the stream.

    ``cut``: the deadline ended it (`cut_off`). Its ``finish_reason`` is ``length`` then.

    ``experts`` [n, layers, k] are the experts that the model chose, at the positions from ``experts_from`` of the
    request to the last but one of prompt and continuation (the last sampled token was never an input of the model).
    None if the engine reports no experts. In a stream, the last chunk has them.

    ``seconds`` is how long the answer took, as the proxy saw it. Of these the request waited ``queued_s`` in the queue
    of the engine (0 where the engine does not tell).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    finish_reason: str
    top_logprobs: tuple[Mapping[int, float], ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    stream_versions: tuple[int, ...] = ()
    cut: bool = False
    experts: Experts | None = field(default=None, compare=False, repr=False)
    seconds: float = field(default=0.0, compare=False)
    queued_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Scores:
    """Log-probs (nats, temperature 1) of tokens 1..T-1 of a row, and the version of the weights they are of.

    ``version`` is -1 for a server that never got weights, and None where the server reports none.
    """

    logprobs: list[float]
    version: int | None


class Engine(Protocol):
    """The interface of an inference engine that the proxy uses. Every failure is raised as an InfrastructureFault."""

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, session: str | None = None, deadline: float
    ) -> Generation:
        """Sample one continuation of ``token_ids``. After ``deadline`` seconds it ends with the tokens sampled so far.

        Cancelling ends the request at the engine, too.
        """
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
