"""The JSON of SGLang's route ``/generate``: requests and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.engine.generation import EngineRejected, Generation, SamplingParams, Scores
from tau2_lightning.rollout.engine.wire import common_params, spread_versions

GENERATE = "/generate"


def request_body(
    token_ids: Sequence[int], sampling: SamplingParams, *, request_id: str, adapter: str | None, stream: bool = False
) -> bytes:
    """The JSON body of a generate request. ``adapter`` is a LoRA adapter's name.

    The request's seed is left out: SGLang ignores it outside its deterministic mode, which has no CPU form. Raises
    EngineRejected for a constraint that SGLang does not have.
    """
    params = {"max_new_tokens": sampling.max_tokens, **common_params(sampling)}
    if sampling.structured is not None:
        params |= _constraint(sampling.structured)
    body: dict[str, Any] = {"rid": request_id, "input_ids": token_ids, "sampling_params": params}
    body |= {"return_logprob": True, "stream": stream}
    if sampling.logprobs:
        body["top_logprobs_num"] = sampling.logprobs
    if adapter:
        body["lora_path"] = adapter
    try:
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # token ids of a kind that orjson does not know
        return orjson.dumps(body | {"input_ids": [int(token) for token in token_ids]})


def _constraint(structured: Mapping[str, Any]) -> dict[str, str]:
    if "json" in structured:
        schema = structured["json"]
        return {"json_schema": schema if isinstance(schema, str) else orjson.dumps(schema).decode()}
    if "grammar" in structured:
        return {"ebnf": structured["grammar"]}
    raise EngineRejected(f"SGLang has no constraint of the kind {', '.join(structured)}")


def score_body(token_ids: Sequence[int], adapter: str | None) -> bytes:
    """The JSON body of a request for the log-probs of a prompt, at temperature 1."""
    # One token is sampled, because versions are those of sampled tokens.
    body: dict[str, Any] = {"input_ids": list(token_ids), "sampling_params": {"max_new_tokens": 1, "temperature": 1.0}}
    body |= {"return_logprob": True, "logprob_start_len": 0}
    return orjson.dumps(body | ({"lora_path": adapter} if adapter else {}))


def parse_scores(answer: Mapping[str, Any], token_ids: Sequence[int], name: str) -> Scores:
    """The answer to ``score_body``. Raises InfrastructureFault when it has no log-probs."""
    try:
        entries = answer["meta_info"]["input_token_logprobs"]
        # SGLang writes 0 instead of the last id of the vocabulary; the log-prob is the right one.
        pairs = zip(entries[1:], token_ids[1:], strict=False)
        if len(entries) != len(token_ids) or any(entry[1] not in (token, 0) for entry, token in pairs):
            raise InfrastructureFault("engine", "bad answer", f"{name}: log-probs of other tokens than the prompt's")
        spans = answer["meta_info"].get("weight_versions")
        version = spread_versions(spans, 1)[0] if spans else None
        return Scores([float(entry[0]) for entry in entries[1:]], version)
    except (KeyError, TypeError, IndexError) as error:
        raise InfrastructureFault("engine", "bad answer", f"{name}: {error!r} in {str(answer)[:300]}") from error


def parse_generation(answer: Mapping[str, Any], sampling: SamplingParams, *, cut: bool = False) -> Generation:
    """A complete (not streamed) answer. ``cut``: our deadline ended it. Raises InfrastructureFault when parts are
    missing."""
    reader = Reader(sampling)
    chunk = reader.read(answer)
    reason = chunk.finish_reason
    if cut := cut and reason == "abort":
        reason = "length" if chunk.token_ids else reason
    if not reason:
        raise InfrastructureFault("engine", "bad answer", f"an answer without an end: {str(answer)[:300]}")
    meta = answer["meta_info"]
    return Generation(
        chunk.token_ids,
        chunk.logprobs,
        chunk.stream_versions,
        reason,
        chunk.top_logprobs,
        meta.get("prompt_tokens") or 0,
        meta.get("cached_tokens") or 0,
        cut=cut,
    )


class Reader:
    """Reads the events of one stream, or one complete answer. Events hold all tokens so far, or only new ones
    (``--incremental-streaming-output``)."""

    def __init__(self, sampling: SamplingParams) -> None:
        self._sampling = sampling
        self._read = 0

    def read(self, event: Mapping[str, Any]) -> Generation:
        """The new tokens of ``event``. Their versions are -1; ``stream_versions`` of the last chunk has them all."""
        try:
            return self._chunk(event, event["meta_info"])
        except (KeyError, IndexError, TypeError) as error:
            raise InfrastructureFault("engine", "bad answer", f"{error!r} in {str(event)[:300]}") from error

    def _chunk(self, event: Mapping[str, Any], meta: Mapping[str, Any]) -> Generation:
        total = int(meta["completion_tokens"])
        token_ids = tuple(self._new(event["output_ids"], total))
        entries = self._new(meta["output_token_logprobs"] or (), total)
        if [entry[1] for entry in entries] != list(token_ids):
            problem = f"{len(token_ids)} tokens with log-probs of {len(entries)}, or of others"
            raise InfrastructureFault("engine", "bad answer", problem)
        top: tuple[dict[int, float], ...] = ()
        if self._sampling.logprobs:
            found = self._new(meta["output_top_logprobs"], total)
            top = tuple({token: logprob for logprob, token, *_ in alternatives or ()} for alternatives in found)
        self._read = total
        reason = (meta.get("finish_reason") or {}).get("type", "")
        versions = spread_versions(meta.get("weight_versions"), total) if reason else ()
        logprobs = tuple(float(entry[0]) for entry in entries)
        unknown = (-1,) * len(token_ids)
        return Generation(token_ids, logprobs, unknown, reason, top, stream_versions=versions)

    def _new(self, values: Sequence[Any], total: int) -> Sequence[Any]:
        if len(values) == total:
            return values[self._read :]
        if len(values) == total - self._read:
            return values
        problem = f"{len(values)} values for {total} tokens, {self._read} of them known"
        raise InfrastructureFault("engine", "bad answer", problem)
