"""Conversion of requests and answers to and from vLLM's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import orjson

from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.wire import request_body, spread_versions


def test_only_what_was_asked_reaches_the_wire():
    plain = orjson.loads(request_body([1, 2], SamplingParams(max_tokens=5, seed=3), model=None, seeds=False))
    params = {"max_tokens": 5, "temperature": 1.0, "logprobs": 0, "detokenize": False}
    assert plain == {"token_ids": [1, 2], "sampling_params": params}
    rich = SamplingParams(
        max_tokens=5, top_p=0.9, top_k=4, min_p=0.1, seed=3, stop=("x",), stop_token_ids=(9,), logprobs=2,
        logit_bias={5: 1.0}, ignore_eos=True, structured={"json": {}}, repetition_penalty=1.1,
    )  # fmt: skip
    sent = orjson.loads(request_body(cast("Sequence[int]", np.arange(3)), rich, model="lora", seeds=True, stream=True))
    assert sent["token_ids"] == [0, 1, 2] and sent["stream"] is True and sent["model"] == "lora"
    assert sent["sampling_params"] == {
        "max_tokens": 5, "temperature": 1.0, "logprobs": 2, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "ignore_eos": True,
        "repetition_penalty": 1.1, "stop": ["x"], "stop_token_ids": [9], "logit_bias": {"5": 1.0},
        "structured_outputs": {"json": {}}, "seed": 3,
    }  # fmt: skip


def test_versions_are_spread_over_tokens():
    spans = [{"version": "3", "start": 0, "end": 2}, {"version": "4", "start": 2, "end": 5}]
    assert spread_versions(spans, 5) == (3, 3, 4, 4, 4)
    assert spread_versions(None, 2) == (-1, -1)
    assert spread_versions([{"version": "default", "start": 0, "end": 2}], 2) == (-1, -1)
