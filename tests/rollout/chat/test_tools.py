"""Our parsers give the results of vLLM's on hand-written and generated text; rules for every parser; streams."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tau2_lightning.rollout.chat.hermes import HermesParser
from tau2_lightning.rollout.chat.message import ParsedMessage
from tau2_lightning.rollout.chat.parsers import PARSERS, make_tool_parser
from tau2_lightning.rollout.chat.reasoning import split_reasoning
from tau2_lightning.rollout.chat.tools import CallStream, read_turn
from tests.rollout.proxy.fixtures import SPECIAL, byte_tokenizer, template
from tests.rollout.proxy.rig import MARKS

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
PIECES = [
    "<tool_call>", "</tool_call>", "<tool_call>\n", "\n</tool_call>", "text ", "\n", "{", "}", '"', ",", ":", "[1]",
    '{"name": "f", "arguments": {}}', '{"name": "g", "arguments": {"a": "é\\u00e9</b>"}}', '{"name": "f"}',
    '{"arguments": {"x": 1.50}, "name": "h"}', '{"name": 3, "arguments": {}}', '{"name": "f", "arguments": [1, 2]}',
    '{"name": "f", "arguments": null}', '"just a string"', "[]", "null", '{"name": "f", "arguments": "{}"}',
    '{"name": "f", "arguments": {"n": NaN}}', "<tool_call", "call>", " \t", '{"name": "", "arguments": {}}',
    '{"name": "f", "arguments": {"a": "</tool_call>"}}', '{"name": "f", "arguments": {"a": "\\ud83d"}}',
]  # fmt: skip
# Pieces of the other formats.
MORE = [
    "<|python_tag|>", "; ", "[", "]", '{"name": "f", "parameters": {"a": 1}}', '{"answer": 1}', "[TOOL_CALLS]",
    "[ARGS]", 'f[ARGS]{"a": 1}', "[f(a=1)]", "f(", "a=1", "g(b=[1, {'c': None}])", ")", "<|python_start|>",
    "<|python_end|>", "['", "\\",
]  # fmt: skip


def texts_of(pieces: Sequence[str]) -> st.SearchStrategy[str]:
    return st.lists(st.one_of(st.sampled_from(pieces), st.text(max_size=4)), max_size=8).map("".join)


def parser_of(name: str) -> Any:
    return make_tool_parser(name, byte_tokenizer(template("qwen2_5"), (*SPECIAL, *MARKS.get(name, ()))))


def vllm_parser(name: str) -> Any:
    manager = pytest.importorskip("vllm.tool_parsers").ToolParserManager
    logging.getLogger("vllm").setLevel(logging.CRITICAL)
    marks = ("<|python_tag|>", "[TOOL_CALLS]")
    cls = manager.get_tool_parser(name)
    logging.getLogger(cls.__module__).disabled = True
    logging.getLogger("vllm.tool_parsers.utils").disabled = True
    return cls(byte_tokenizer(template("qwen2_5"), (*SPECIAL, *marks)))


@pytest.fixture(scope="module")
def vllm_hermes() -> Any:
    return vllm_parser("hermes")


def is_strict(arguments: str) -> bool:
    """Whether arguments are a JSON object. vLLM also accepts other values and NaN, because Python's json reads them."""
    return isinstance(json.loads(arguments), dict) and "NaN" not in arguments


def mended(arguments: str) -> str:
    """The arguments with U+FFFD for halves of a surrogate pair, which no UTF-8 request can carry."""
    return re.sub(r"\\ud[89a-f][0-9a-f]{2}|[\ud800-\udfff]", r"\\ufffd", arguments)


@pytest.mark.slow
@given(text=texts_of(PIECES))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hermes_is_equal_to_vllm(vllm_hermes: Any, text: str) -> None:
    """The results differ only for calls that cannot be made, tags inside strings, and halves of a surrogate pair."""
    content, calls, invalid = HermesParser().parse(text, [])
    theirs = vllm_hermes.extract_tool_calls(text, None)
    found = [(call.function.name, call.function.arguments) for call in theirs.tool_calls]
    if any(not name or not is_strict(arguments) for name, arguments in found):
        assert (content, calls, invalid) == (text, (), True)
    elif any("</tool_call>" in call.arguments for call in calls):
        assert theirs.content == text
    else:
        assert content == theirs.content
        assert [(c.name, json.loads(c.arguments)) for c in calls] == [(n, json.loads(mended(a))) for n, a in found]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(st.sampled_from("abé \n'\"[]{}()"), max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)
made = st.lists(
    st.tuples(st.sampled_from(["f", "look", "other"]), st.dictionaries(st.sampled_from("abc"), values, max_size=3)),
    min_size=1,
    max_size=3,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3_json", "pythonic", "mistral"])
def test_calls_of_other_formats_are_read_as_vllm_reads_them(name: str) -> None:
    parser, theirs = parser_of(name), vllm_parser(name)

    @given(calls=made)
    @settings(max_examples=100, deadline=None)
    def check(calls: Any) -> None:
        match name:
            case "llama3_json":
                said = "; ".join(json.dumps({"name": n, "parameters": a}) for n, a in calls)
            case "mistral":
                said = "[TOOL_CALLS]" + json.dumps([{"name": n, "arguments": a} for n, a in calls])
            case _:
                said = ", ".join(f"{n}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for n, a in calls)
                said = f"[{said}]"
        content, ours, invalid = read_turn(parser, said, TOOLS)
        assert content is None and not invalid
        assert [(c.name, json.loads(c.arguments)) for c in ours] == calls
        found = type(theirs)(theirs.model_tokenizer).extract_tool_calls(said, None)
        assert [(c.function.name, json.loads(c.function.arguments)) for c in found.tool_calls] == calls

    check()


@pytest.mark.parametrize("name", [*PARSERS, None])
@given(text=texts_of([*PIECES, *MORE]), cuts=st.lists(st.integers(0, 200), max_size=12))
@settings(max_examples=150, deadline=None)
def test_a_stream_adds_up_to_the_whole(name: str | None, text: str, cuts: list[int]) -> None:
    """This holds for any text and any cuts. The result is always either calls or the text itself."""
    parser = _OWN.setdefault(name, parser_of(name or "") if name else make_tool_parser(None, None))
    content, calls, invalid = read_turn(parser, text, TOOLS)
    assert calls or (content or "") == text
    assert not (invalid and calls)
    assert all(isinstance(json.loads(call.arguments), dict) and call.name and call.arguments.encode() for call in calls)
    stream = CallStream(parser.openings)
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    deltas = [d for a, b in itertools.pairwise(bounds) for d in stream.feed(text[a:b])]
    deltas += stream.finish(ParsedMessage(content, None, calls, invalid, text))
    assert "".join(d.content for d in deltas) == (content or "")
    got = [(d.call, d.name, d.arguments) for d in deltas if d.call is not None]
    assert got == [(at, call.name, call.arguments) for at, call in enumerate(calls)]


_OWN: dict[str | None, Any] = {}


def test_text_is_not_held_back_before_a_call_can_begin() -> None:
    for name, text in (("hermes", "a <b"), ("llama3_json", "a < b <|python"), ("pythonic", "a")):
        stream = CallStream(parser_of(name).openings)
        assert "".join(d.content for piece in text for d in stream.feed(piece)).startswith("a")
    waiting = CallStream(parser_of("llama3_json").openings)
    assert [d.content for piece in ("ab", "c{", "d") for d in waiting.feed(piece)] == ["ab", "c"]
    assert [d.content for d in waiting.finish(ParsedMessage("abc{d"))] == ["{d"]
    everything = CallStream(("",))
    assert not list(everything.feed("abc"))
    assert [d.content for d in everything.finish(ParsedMessage("abc"))] == ["abc"]


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("hello", False, (None, "hello")),
        ("<think>\na\n</think>\n\nb", False, ("a", "b")),
        ("a\n</think>\n\nb", True, ("a", "b")),
        ("<think>cut", False, ("cut", "")),
        ("cut", True, ("cut", "")),
        ("<think>\n\n</think>\n\nb", False, ("", "b")),
        ("<think>a</think>b", True, ("a", "b")),
        ("say </think> b", False, (None, "say </think> b")),
        ("say <think>a</think> b", False, (None, "say <think>a</think> b")),
    ],
)
def test_split_reasoning(text: str, opened: bool, expected: tuple[str | None, str]) -> None:
    assert split_reasoning(text, open_at_start=opened) == expected


def test_unknown_parsers_and_tokenizers_that_lack_a_token() -> None:
    tokenizer = byte_tokenizer(template("qwen2_5"))
    with pytest.raises(ValueError, match="python_tag"):
        make_tool_parser("llama3_json", tokenizer)
    with pytest.raises(ValueError, match="TOOL_CALLS"):
        make_tool_parser("mistral", tokenizer)


def test_a_parser_of_ones_own_is_one_line_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shouting:
        openings = ()

        def parse(self, text: str, tools: Any) -> Any:
            return text.upper(), (), False

        def structural_tag(self, functions: Any, *, once: bool) -> None:
            return None

    monkeypatch.setitem(PARSERS, "shouting", lambda tokenizer: Shouting())
    tokenizer = byte_tokenizer(template("qwen2_5"))
    assert make_tool_parser("shouting", tokenizer).parse("hi", []) == ("HI", (), False)
    assert isinstance(make_tool_parser("qwen3_json", tokenizer), HermesParser)
    assert make_tool_parser(None, tokenizer).parse("hi", []) == ("hi", (), False)


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "mistral", "pythonic"])
def test_text_nested_without_end_is_malformed(name: str) -> None:
    parser = parser_of(name)
    for opening in ("[", '{"a":', "-", "("):
        deep = opening * 100_000
        said = {
            "hermes": f'<tool_call>{{"name": "f", "arguments": {{"a": {deep}',
            "llama3_json": f'{{"name": "f", "parameters": {{"a": {deep}',
            "mistral": f"[TOOL_CALLS]f[ARGS]{{{deep}",
            "pythonic": f"[f(a={deep}1)]",
        }[name]
        assert read_turn(parser, said, TOOLS) == (said, (), True)
