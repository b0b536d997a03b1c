"""The request bodies of the proxy as msgspec structs: they check a body and they are its OpenAPI document.

A null means that the field is absent. msgspec checks a history of 34 messages in 14 microseconds, the hand-written
checks before it took 54, because a whole history comes with every turn.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from tau2_lightning.rollout.session.rewards import REWARD_LIMIT

Word = Annotated[str, Meta(min_length=1)]
# Every token of a stream is compared with the beginnings of every stop word: the square of its length.
StopWord = Annotated[str, Meta(min_length=1, max_length=256)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
Reward = Annotated[float, Meta(ge=-REWARD_LIMIT, le=REWARD_LIMIT)]
Biases = dict[Annotated[str, Meta(pattern="^[0-9]{1,9}$")], Annotated[float, Meta(ge=-100, le=100)]]


class TextPart(Struct, tag_field="type", tag="text"):
    """A part of a message's content; other kinds than text are refused."""

    text: str


class CalledFunction(Struct):
    """``arguments`` is a JSON text."""

    name: str
    arguments: str | dict[str, Any] | None = None


class MessageCall(Struct):
    """A call in an assistant message."""

    function: CalledFunction
    id: str | None = None


class ChatMessage(Struct):
    """``content`` is required, but for an assistant or beside ``tool_calls``, which took the place of
    ``function_call``."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[MessageCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: str | None = None
    function_call: None = None


class Function(Struct):
    """``parameters`` is a JSON schema of the arguments."""

    name: Word
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct):
    """A function that the policy may call."""

    function: Function
    type: Literal["function"] = "function"


class FunctionName(Struct):
    """One of the functions of ``tools``."""

    name: str


class NamedTool(Struct, tag_field="type", tag="function"):
    """Forces a call of one function."""

    function: FunctionName


class TextFormat(Struct, tag_field="type", tag="text"):
    """Any text."""


class JsonFormat(Struct, tag_field="type", tag="json_object"):
    """Any JSON object."""


class NamedSchema(Struct):
    """``schema`` is a JSON schema."""

    schema: dict[str, Any]


class SchemaFormat(Struct, tag_field="type", tag="json_schema"):
    """JSON that a schema accepts."""

    json_schema: NamedSchema


class StreamOptions(Struct):
    """``include_usage``: a last chunk counts the tokens."""

    include_usage: bool | None = None


class Sampling(Struct, kw_only=True):
    """The fields common to chat and text completions."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1, description="0 and -1: no limit")] | None = None
    min_p: Share | None = None
    max_tokens: Count | None = None
    stop: StopWord | Annotated[list[StopWord], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=1024)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=32)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: Annotated[Biases, Meta(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ChatOptions(Sampling, kw_only=True):
    """The fields of a chat completion that a session may hold defaults of."""

    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[TopLogprobs, Meta(description="needs logprobs")] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat | None = None


class ChatRequest(ChatOptions, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    tools: Annotated[list[Tool], Meta(max_length=1024)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(description="e.g. enable_thinking")] | None = None


class TextRequest(Sampling, kw_only=True):
    """``POST /v1/completions``: a text, its token ids, or a list of either."""

    prompt: Word | Annotated[list[int | str | list[int]], Meta(min_length=1)]
    logprobs: TopLogprobs | None = None
    echo: Annotated[bool, Meta(description="only false")] | None = None


class StartRequest(Struct, kw_only=True):
    """``POST /sessions``. The last three stand in for requests that leave these fields out."""

    task_id: str | None = None
    group_id: str | None = None
    metadata: dict[str, Any] | None = None
    tools: Annotated[list[Tool], Meta(max_length=1024)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    sampling: ChatOptions | None = None


class RewardRequest(Struct):
    """``POST /sessions/ID/reward``: the final reward, or that of ``turn``, an index or the id of its completion."""

    reward: Reward
    turn: int | str | None = None


class EndRequest(Struct):
    """``POST /sessions/ID/end``."""

    reward: Reward | None = None
