"""A byte-level tokenizer with any chat template, and an engine that samples prepared texts. For unit tests only."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tau2_lightning.rollout.engine.generation import Generation, SamplingParams

POLICY = Path(__file__).parents[3] / "tau2_lightning/policy"
TINY = (POLICY / "chat_template.jinja").read_text()
OURS = {"tiny": TINY, "hermes": (POLICY / "templates" / "hermes.jinja").read_text()}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")


def template(name: str) -> str:
    """Our template ``tiny`` or ``hermes``, or one of the ``trl`` package (``qwen2_5``, ``qwen3``, ...)."""
    if name in OURS:
        return OURS[name]
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def byte_tokenizer(chat_template: str, special: Sequence[str] = SPECIAL, eos: str = "<|im_end|>") -> Any:
    """A tokenizer with one token per byte and per tag. A few merges make tokenisation ambiguous, as in real ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("e", "r"), ("{", '"'), ('"', ":"), ("Ġ", '"')]
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, pad_token=special[0])
    tokenizer.chat_template = chat_template
    return tokenizer


class ScriptedEngine:
    """Answers with the queued texts (end-of-turn token included unless ``truncate``), logprob -0.5, then ``hello``.

    ``delay`` is in seconds, per token in ``stream`` and per call in ``generate``. Every token has the version
    ``version``; ``fault`` is raised instead of an answer; ``cancelled`` counts aborted calls. Calls of ``generate``
    wait for the event ``hold`` if there is one; ``held`` counts the calls that wait or are delayed.
    """

    def __init__(self, tokenizer: Any, max_model_len: int = 100_000) -> None:
        self.tokenizer, self._max_model_len = tokenizer, max_model_len
        self.script: deque[str | list[int]] = deque()
        self.calls: list[tuple[list[int], SamplingParams, str | None]] = []
        self.delay, self.version, self.cancelled = 0.0, 0, 0
        self.fault: Exception | None = None
        self.truncate = False
        self.hold: asyncio.Event | None = None
        self.held = 0

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    def _sample(self, token_ids: Sequence[int], sampling: SamplingParams, session: str | None) -> Generation:
        self.calls.append((list(token_ids), sampling, session))
        if self.fault is not None:
            raise self.fault
        said = self.script.popleft() if self.script else "hello"
        ids = list(said) if isinstance(said, list) else self.tokenizer.encode(said, add_special_tokens=False)
        text = self.tokenizer.decode(ids)
        cuts = [text.find(word) + len(word) for word in sampling.stop if word in text]
        if cuts:
            ids = self.tokenizer.encode(text[: min(cuts)], add_special_tokens=False)
        elif not self.truncate and not isinstance(said, list):
            ids.append(self.tokenizer.eos_token_id)
        reason = "length" if len(ids) > sampling.max_tokens or self.truncate else "stop"
        ids = ids[: sampling.max_tokens]
        top = tuple({token: -0.5, 0: -1.5} for token in ids) if sampling.logprobs else ()
        return Generation(
            tuple(ids), (-0.5,) * len(ids), (self.version,) * len(ids), reason, top, len(token_ids), len(token_ids) // 2
        )

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, session: str | None = None, deadline: float
    ) -> Generation:
        self.held += 1
        try:
            if self.hold is not None:
                await self.hold.wait()
            if self.delay:
                await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.held -= 1
        return self._sample(token_ids, sampling, session)

    async def stream(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, session: str | None = None, deadline: float
    ) -> AsyncIterator[Generation]:
        whole = self._sample(token_ids, sampling, session)
        try:
            for at, token in enumerate(whole.token_ids):
                await asyncio.sleep(self.delay)
                last = at + 1 == len(whole.token_ids)
                yield Generation(
                    (token,),
                    (whole.logprobs[at],),
                    (-1,),  # as in vLLM, only the last chunk has versions
                    whole.finish_reason if last else "",
                    whole.top_logprobs[at : at + 1],
                    whole.prompt_tokens,
                    whole.cached_tokens,
                    stream_versions=whole.versions if last else (),
                )
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def score(self, token_ids: Sequence[int], *, deadline: float) -> list[float]:
        return [-1.0] * (len(token_ids) - 1)
