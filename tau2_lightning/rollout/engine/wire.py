"""The JSON of vLLM's route ``/inference/v1/generate``: requests and answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.segments import Experts

from .generation import NEUTRAL, EngineRejected, Generation, SamplingParams, Scores, progresses

# vLLM's name of the weight version before the first publication.
UNVERSIONED = "default"


def common_params(sampling: SamplingParams) -> dict[str, Any]:
    """The sampling parameters that vLLM and SGLang call by the same names."""
    params: dict[str, Any] = {"temperature": sampling.temperature}
    for name, neutral in NEUTRAL.items():
        if (value := getattr(sampling, name)) != neutral:
            params[name] = value
    if sampling.ignore_eos:
        params["ignore_eos"] = True
    if sampling.stop:
        params["stop"] = sampling.stop
    if sampling.stop_token_ids:
        params["stop_token_ids"] = sampling.stop_token_ids
    if sampling.logit_bias:
        params["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return params


def request_body(
    token_ids: Sequence[int], sampling: SamplingParams, *, model: str | None, seeds: bool, stream: bool = False
) -> bytes:
    """The JSON body of a generate request. ``model`` is an adapter's name; ``seeds`` passes the request's seed on."""
    params = {"max_tokens": sampling.max_tokens, "logprobs": sampling.logprobs, **common_params(sampling)}
    if not sampling.stop:
        params["detokenize"] = False  # the proxy makes the text; this saves a third of the server's work
    if sampling.structured is not None:
        params["structured_outputs"] = dict(sampling.structured)
    if sampling.seed is not None and seeds:
        params["seed"] = sampling.seed
    if sampling.experts_from is not None:
        params["routed_experts_prompt_start"] = sampling.experts_from
    body: dict[str, Any] = {"token_ids": token_ids, "sampling_params": params}
    if model:
        body["model"] = model
    if stream:
        body["stream"] = True
    try:
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # token ids of a kind that orjson does not know
        body["token_ids"] = [int(token) for token in token_ids]
        return orjson.dumps(body)


def score_body(token_ids: Sequence[int], model: str | None) -> bytes:
    """The JSON body of a request for the log-probs of a prompt, at temperature 1."""
    sampling = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0, "detokenize": False}
    body: dict[str, Any] = {"token_ids": list(token_ids), "sampling_params": sampling}
    return orjson.dumps(body | ({"model": model} if model else {}))


def decoded(body: bytes, name: str) -> dict[str, Any]:
    """A JSON object of server ``name``; {} for an empty body. Raises InfrastructureFault for anything else."""
    try:
        answer: dict[str, Any] = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise InfrastructureFault("engine", "bad answer", f"{name}: {error} in {body[:200]!r}") from error
    return answer


def refusal(name: str, status: int, text: str) -> Exception:
    """The exception for an HTTP answer of server ``name`` other than 200."""
    message = f"{name} answered {status}: {text[:500]}"
    if status in (401, 403):
        return InfrastructureFault("engine", "unauthorized", message)
    if 400 <= status < 500 and status not in (408, 429):
        return EngineRejected(message)
    return InfrastructureFault("engine", f"http {status}", message)


def parse_scores(answer: Mapping[str, Any], token_ids: Sequence[int], name: str) -> Scores:
    """The answer to ``score_body``. Raises InfrastructureFault when it has no log-probs."""
    entries = answer["prompt_logprobs"]
    if entries is None or len(entries) != len(token_ids):
        raise InfrastructureFault("engine", "bad answer", f"{name}: no log-probs for the prompt")
    logprobs = [float(entry[str(token)]["logprob"]) for token, entry in zip(token_ids[1:], entries[1:], strict=True)]
    # The request samples one token, which carries the version.
    spans = next((choice.get("weight_versions") for choice in answer["choices"]), None)
    return Scores(logprobs, spread_versions(spans, 1)[0] if spans else None)


def parse_generation(answer: Mapping[str, Any], sampling: SamplingParams) -> Generation:
    """A complete (not streamed) answer. Raises InfrastructureFault when parts are missing."""
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        chunk = parse_chunk(choice, sampling)
        versions = spread_versions(choice.get("weight_versions"), len(chunk.token_ids))
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        idle = choice.get("cut_after_idle_s")  # set if our extension ended the request at its deadline
        cut = idle is not None
        reason = "length" if cut and progresses(len(chunk.token_ids), idle) else chunk.finish_reason
        return Generation(
            chunk.token_ids,
            chunk.logprobs,
            versions,
            reason,
            chunk.top_logprobs,
            usage["prompt_tokens"],
            cached,
            cut=cut,
            experts=chunk.experts,
            queued_s=float(choice.get("queued_s") or 0.0),  # set by our extension
        )
    except (KeyError, IndexError, TypeError) as error:
        raise InfrastructureFault("engine", "bad answer", f"{error!r} in {str(answer)[:300]}") from error


def parse_chunk(choice: Mapping[str, Any], sampling: SamplingParams) -> Generation:
    """One choice of an answer or event. Versions are -1, except in ``stream_versions`` of a stream's last chunk."""
    token_ids = tuple(choice["token_ids"] or ())
    content = (choice.get("logprobs") or {}).get("content") or ()
    logprobs = tuple(entry["logprob"] for entry in content)
    if len(logprobs) != len(token_ids):
        raise InfrastructureFault("engine", "bad answer", f"{len(token_ids)} tokens with {len(logprobs)} log-probs")
    reason = choice.get("finish_reason") or ""
    if reason == "error":
        raise InfrastructureFault("engine", "generation error", str(choice)[:300])
    top: tuple[dict[int, float], ...] = ()
    if sampling.logprobs:
        top = tuple({alt["token_id"]: alt["logprob"] for alt in entry["top_logprobs"]} for entry in content)
    spans = choice.get("weight_versions")
    total = spans[-1]["end"] if spans else 0
    stream_versions = spread_versions(spans, total)
    return Generation(
        token_ids,
        logprobs,
        (-1,) * len(token_ids),
        reason,
        top,
        stream_versions=stream_versions,
        experts=None if sampling.experts_from is None else parse_experts(choice.get("routed_experts")),
    )


def parse_experts(text: str | None) -> Experts | None:
    """vLLM's base64 of a numpy file of [n, layers, k] uint8 or uint16; None without it.

    Raises InfrastructureFault for anything else.
    """
    if text is None:
        return None
    read: Any = np.lib.format.read_array  # untyped
    try:
        experts: npt.NDArray[Any] = read(io.BytesIO(base64.b64decode(text)), allow_pickle=False)
    except ValueError as error:
        raise InfrastructureFault("engine", "bad answer", f"routed experts: {error}") from error
    if experts.ndim != 3 or experts.dtype not in (np.uint8, np.uint16):
        problem = f"routed experts of shape {experts.shape}, {experts.dtype}"
        raise InfrastructureFault("engine", "bad answer", problem)
    return experts.astype(np.uint8, copy=False) if experts.dtype == np.uint8 else experts.astype(np.int16)


def spread_versions(spans: Sequence[Mapping[str, Any]] | None, count: int) -> tuple[int, ...]:
    """The weight version of each of ``count`` tokens from vLLM's spans ``[start, end)``; -1 where none is reported."""
    versions = [-1] * count
    for span in spans or ():
        label = -1 if span["version"] == UNVERSIONED else int(span["version"])
        start, end = span["start"], min(span["end"], count)
        versions[start:end] = [label] * (end - start)
    return tuple(versions)
