"""SGLang's JSON: what is sent for sampling parameters, and how answers and streams are read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.engine.generation import EngineRejected, SamplingParams
from tau2_lightning.rollout.engine.sglang.wire import Reader, parse_generation, parse_scores, request_body
from tests.rollout.engine.fake_sglang import FakeSGLang


def sent(sampling: SamplingParams, **changes) -> dict:
    return json.loads(request_body([1, 2], sampling, request_id="r", adapter=changes.pop("adapter", None), **changes))


def test_only_what_differs_from_neutral_is_sent():
    assert sent(SamplingParams(max_tokens=5, seed=3)) == {
        "rid": "r",
        "input_ids": [1, 2],
        "sampling_params": {"max_new_tokens": 5, "temperature": 1.0},
        "return_logprob": True,
        "stream": False,
    }
    body = sent(
        SamplingParams(
            max_tokens=5, temperature=0.7, top_p=0.9, top_k=4, stop=("x",), stop_token_ids=(7,), logprobs=2,
            logit_bias={9: 1.5}, ignore_eos=True, repetition_penalty=1.1, structured={"json": {"type": "object"}},
        ),
        adapter="a", stream=True,
    )  # fmt: skip
    assert body["sampling_params"] == {
        "max_new_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 4, "stop": ["x"], "stop_token_ids": [7],
        "logit_bias": {"9": 1.5}, "ignore_eos": True, "repetition_penalty": 1.1, "json_schema": '{"type":"object"}',
    }  # fmt: skip
    assert (body["lora_path"], body["top_logprobs_num"], body["stream"]) == ("a", 2, True)
    grammar = sent(SamplingParams(max_tokens=1, structured={"grammar": "root ::= x"}))
    assert grammar["sampling_params"]["ebnf"] == "root ::= x"
    with pytest.raises(EngineRejected, match="choice"):
        sent(SamplingParams(max_tokens=1, structured={"choice": ["a"]}))


def test_token_ids_may_be_an_array():
    ids: Any = np.array([4, 5])
    body = request_body(ids, SamplingParams(max_tokens=1), request_id="r", adapter=None)
    assert json.loads(body)["input_ids"] == [4, 5]


SAMPLING = SamplingParams(max_tokens=3)


def test_an_answer_has_versions_of_each_token():
    answer = FakeSGLang().answer((4, 5, 6))
    spans = [{"version": "default", "start": 0, "end": 1}, {"version": "3", "start": 1, "end": 3}]
    answer["meta_info"]["weight_versions"] = spans
    generation = parse_generation(answer, SAMPLING)
    assert (generation.token_ids, generation.versions) == ((4, 5, 6), (-1, 3, 3))
    assert (generation.prompt_tokens, generation.cached_tokens, generation.finish_reason) == (4, 1, "stop")


@pytest.mark.parametrize(
    ("cut", "tokens", "reason"), [(True, (4,), "length"), (True, (), "abort"), (False, (4,), "abort")]
)
def test_an_aborted_request_is_cut_off_only_by_our_deadline(cut, tokens, reason):
    generation = parse_generation(FakeSGLang().answer(tokens, "abort"), SAMPLING, cut=cut)
    assert (generation.cut, generation.finish_reason, generation.token_ids) == (cut, reason, tokens)


def test_a_request_that_ended_before_its_abort_is_not_cut_off():
    generation = parse_generation(FakeSGLang().answer((4,), "stop"), SAMPLING, cut=True)
    assert (generation.cut, generation.finish_reason) == (False, "stop")


@pytest.mark.parametrize("missing", ["meta_info", "output_ids"])
def test_an_answer_without_its_parts_is_a_fault(missing):
    answer = FakeSGLang().answer()
    del answer[missing]
    with pytest.raises(InfrastructureFault, match="bad answer"):
        parse_generation(answer, SAMPLING)


def test_log_probs_of_other_tokens_are_a_fault():
    answer = FakeSGLang().answer((4, 5))
    answer["meta_info"]["output_token_logprobs"][1][1] = 6
    with pytest.raises(InfrastructureFault, match="or of others"):
        parse_generation(answer, SAMPLING)


def events(incremental: bool) -> list[dict]:
    fake, tokens = FakeSGLang(), (4, 5, 6, 7)
    made = []
    for begin, end in ((0, 1), (1, 3), (3, 4)):
        event = fake.answer(tokens[:end], "length" if end == 4 else None)
        event["meta_info"]["output_top_logprobs"] = [[[-0.5, token, None], [-2.0, 9, None]] for token in tokens[:end]]
        if incremental:
            event["output_ids"] = list(tokens[begin:end])
            for name in ("output_token_logprobs", "output_top_logprobs"):
                event["meta_info"][name] = event["meta_info"][name][begin:]
        made.append(event)
    return made


@pytest.mark.parametrize("incremental", [True, False])
def test_events_may_hold_all_tokens_or_the_new_ones(incremental):
    reader = Reader(SamplingParams(max_tokens=4, logprobs=2))
    chunks = [reader.read(event) for event in events(incremental)]
    assert [chunk.token_ids for chunk in chunks] == [(4,), (5, 6), (7,)]
    assert [chunk.stream_versions for chunk in chunks] == [(), (), (-1,) * 4]
    assert [chunk.finish_reason for chunk in chunks] == ["", "", "length"]
    assert chunks[1].top_logprobs == ({5: -0.5, 9: -2.0}, {6: -0.5, 9: -2.0})


def test_an_event_that_skips_tokens_is_a_fault():
    reader = Reader(SAMPLING)
    first, second, _ = events(incremental=True)
    reader.read(first)
    second["output_ids"] = [5]
    with pytest.raises(InfrastructureFault, match="1 values for 3 tokens, 1 of them known"):
        reader.read(second)


def scored(*tokens: int, version: str | None = "4") -> dict:
    meta = {"input_token_logprobs": [[None, tokens[0], None], *([-0.25, token, None] for token in tokens[1:])]}
    return {"meta_info": meta | ({"weight_versions": [{"version": version, "start": 0, "end": 1}]} if version else {})}


def test_scores_are_of_the_prompt_after_its_first_token():
    scores = parse_scores(scored(7, 8, 9), [7, 8, 9], "engine 0")
    assert (scores.logprobs, scores.version) == ([-0.25, -0.25], 4)
    assert parse_scores(scored(7, 8, version=None), [7, 8], "engine 0").version is None
    assert parse_scores(scored(7, 0, 9), [7, 99, 9], "engine 0").logprobs == [-0.25, -0.25]  # the last id reads as 0
    broken: list[dict] = [scored(7, 8), scored(7, 8, 9, 10), scored(7, 8, 6), {"meta_info": {}}]
    for answer in broken:
        with pytest.raises(InfrastructureFault, match="bad answer"):
            parse_scores(answer, [7, 8, 9], "engine 0")
