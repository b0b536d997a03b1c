"""Request bodies: a refusal names the field, and the accepted fields are those of the OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tau2_lightning.rollout.proxy.calls import ChatCall, chat_call
from tau2_lightning.rollout.proxy.checks import checked
from tau2_lightning.rollout.proxy.errors import APIError
from tau2_lightning.rollout.proxy.openapi import CHAT_DOC, START_DOC
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.proxy.wire import ChatRequest, RewardRequest, StartRequest, TextRequest
from tests.rollout.proxy.rig import TOOLS

USER: list[Any] = [{"role": "user", "content": "x"}]
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


def call(**body: Any) -> ChatCall:
    return chat_call({"messages": USER, **body}, ProxySettings(temperature=0.7, max_messages=3), None, {"a": 1})


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"temperature": "hot"}, "temperature", "invalid_request_error"),
        ({"temperature": True}, "temperature", "invalid_request_error"),
        ({"temperature": float("nan")}, "temperature", "invalid_request_error"),
        ({"top_p": 0}, "top_p", "invalid_request_error"),
        ({"seed": 1.5}, "seed", "invalid_request_error"),
        ({"n": 33}, "n", "invalid_request_error"),
        ({"max_tokens": 0}, "max_tokens", "invalid_request_error"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_request_error"),
        ({"stop": ["a"] * 17}, "stop", "invalid_request_error"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_request_error"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_request_error"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "invalid_request_error"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_request_error"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "invalid_request_error"),
        ({"tools": [{"function": {"name": ""}}]}, "tools[0].function.name", "invalid_request_error"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_request_error"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "invalid_request_error"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_request_error"),
        ({"messages": None}, "messages", "invalid_request_error"),
        ({"messages": []}, "messages", "invalid_request_error"),
        ({"messages": USER * 4}, "messages", "invalid_request_error"),
        ({"messages": [3]}, "messages[0]", "invalid_request_error"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_request_error"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "invalid_request_error"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content", "unsupported_content"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": 3}]}, "messages[0].tool_call_id",
         "invalid_request_error"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field(body: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(APIError) as refused:
        call(**body)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, param, code)


def test_a_value_that_looks_like_an_error_is_quoted_in_part() -> None:
    role = " - at `$.seed`" * 100_000
    with pytest.raises(APIError) as refused:
        call(messages=[{"role": role, "content": "x"}])
    assert refused.value.param == "messages[0].role" and len(refused.value.message) < 400


def test_a_missing_field_is_named() -> None:
    for kind, param in ((ChatRequest, "messages"), (RewardRequest, "reward"), (TextRequest, "prompt")):
        with pytest.raises(APIError, match=f"{param}: is required") as refused:
            checked({}, kind)
        assert refused.value.param == param


def test_what_a_request_leaves_out_has_its_default() -> None:
    plain = call(temperature=None, user="me", tools=None, stream_options=None, unknown=None)
    assert plain.messages is USER and plain.tools is None and plain.template_kwargs == {"a": 1}
    sampling = plain.sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens, sampling.stop) == (0.7, -1, 0, ())
    assert (plain.n, plain.stream, plain.parallel_tool_calls, plain.top_logprobs) == (1, False, True, None)
    full = call(
        temperature=0, top_k=0, stop="a", max_tokens=5, max_completion_tokens=4, logit_bias={"7": 1}, logprobs=True,
        tools=TOOLS, tool_choice={"type": "function", "function": {"name": "look"}}, parallel_tool_calls=False,
        chat_template_kwargs={"b": 2}, response_format={"type": "json_object"}, stream_options={"include_usage": True},
    )  # fmt: skip
    sampling = full.sampling
    assert (sampling.temperature, sampling.top_k, sampling.stop, sampling.max_tokens) == (0.0, -1, ("a",), 4)
    assert sampling.logit_bias == {7: 1.0} and full.top_logprobs == 0 and full.include_usage
    assert full.tools is TOOLS and full.tool_choice.name == "look" and not full.parallel_tool_calls
    assert full.template_kwargs == {"a": 1, "b": 2} and full.response_format == {"json": {"type": "object"}}


def test_the_document_is_made_of_what_is_checked() -> None:
    for doc, kind in ((CHAT_DOC, ChatRequest), (START_DOC, StartRequest)):
        schema = doc["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["properties"]) == set(kind.__struct_fields__)
        assert "$ref" not in json.dumps(doc)
    properties = CHAT_DOC["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert properties["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert properties["messages"]["items"]["properties"]["role"]["enum"] == sorted(
        ["system", "developer", "user", "assistant", "tool"]
    )
