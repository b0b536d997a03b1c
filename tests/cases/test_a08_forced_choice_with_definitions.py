"""A8: for a forced tool choice whose schema has ``$defs`` and ``$ref``, the engine gets one self-contained schema that
accepts the same arguments as the schema of each tool."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tau2_lightning.rollout.chat.hermes import HermesParser
from tau2_lightning.rollout.chat.schemas import calls_schema
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.cases.talk import USER, both, turn
from tests.rollout.proxy.fixtures import byte_tokenizer, template
from tests.rollout.proxy.rig import Rig

Schema = dict[str, Any]


def obj(properties: Schema, **more: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False,
            **more}  # fmt: skip


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
#: (schema, arguments that it accepts, arguments that it does not).
CASES: dict[str, tuple[Schema, list[Any], list[Any]]] = {
    "definitions of pydantic": (
        obj({"at": {"$ref": "#/$defs/Place"}}, **{"$defs": {"Place": obj({"x": NUMBER})}}),
        [{"at": {"x": 1}}],
        [{"at": {"x": "1"}}, {"at": 1}, {}],
    ),
    "another schema under the same name": (
        obj({"at": {"$ref": "#/$defs/Place"}}, **{"$defs": {"Place": obj({"y": TEXT})}}),
        [{"at": {"y": "1"}}],
        [{"at": {"x": 1}}, {"at": {"y": 1}}],
    ),
    "draft 4's word, and a definition that uses another": (
        obj({"a": {"$ref": "#/definitions/A"}}, definitions={"A": obj({"b": {"$ref": "#/definitions/B"}}), "B": TEXT}),
        [{"a": {"b": "x"}}],
        [{"a": {"b": 1}}, {"a": "x"}],
    ),
    "a definition that contains itself": (
        obj(
            {"tree": {"$ref": "#/$defs/Tree"}},
            **{"$defs": {"Tree": obj({"of": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}})}},
        ),
        [{"tree": {"of": []}}, {"tree": {"of": [{"of": [{"of": []}]}]}}],
        [{"tree": {"of": [1]}}, {"tree": {"of": [{"of": [{"no": []}]}]}}],
    ),
    "the root itself": (
        {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
            "required": ["next"],
            "additionalProperties": False,
        },
        [{"next": None}, {"next": {"next": {"next": None}}}],
        [{"next": 1}, {"next": {"next": {}}}],
    ),
    "a part of the schema that is no definition": (
        obj({"a": obj({"b": NUMBER}), "c": {"$ref": "#/properties/a"}, "d": {"$ref": "#/properties/a/properties/b"}}),
        [{"a": {"b": 1}, "c": {"b": 2}, "d": 3}],
        [{"a": {"b": 1}, "c": 2, "d": 3}, {"a": {"b": 1}, "c": {"b": 2}, "d": "3"}],
    ),
    "names that pointers escape": (
        obj(
            {
                "a": {"$ref": "#/$defs/x~1y~0z"},
                "b": {"$ref": "#/$defs/a%20b"},
                "c": {"$ref": "#/$defs/List[int]/items"},
            },
            **{"$defs": {"x/y~z": TEXT, "a b": NUMBER, "List[int]": {"type": "array", "items": NUMBER}}},
        ),
        [{"a": "x", "b": 1, "c": 2}],
        [{"a": 1, "b": 1, "c": 2}, {"a": "x", "b": "1", "c": 2}, {"a": "x", "b": 1, "c": [2]}],
    ),
    "a reference into a list": (
        obj({"a": {"anyOf": [TEXT, NUMBER]}, "b": {"$ref": "#/properties/a/anyOf/1"}}),
        [{"a": "x", "b": 1}],
        [{"a": "x", "b": "x"}],
    ),
    "an anchor, and a schema with an address": (
        obj(
            {"a": {"$ref": "#place"}, "b": {"$ref": "https://x.test/tool#/$defs/P"}},
            **{"$id": "https://x.test/tool", "$defs": {"P": {"$anchor": "place", "type": "integer"}}},
        ),
        [{"a": 1, "b": 2}],
        [{"a": "1", "b": 2}, {"a": 1, "b": "2"}],
    ),
    "a property called $ref, and data that looks like one": (
        obj({"$ref": TEXT, "definitions": NUMBER, "c": {"enum": ["#/$defs/A", "#"]}}),
        [{"$ref": "x", "definitions": 1, "c": "#"}],
        [{"$ref": 1, "definitions": 1, "c": "#"}, {"$ref": "x", "definitions": 1, "c": "x"}],
    ),
    "no definitions at all": (obj({"a": TEXT}), [{"a": "x"}], [{"a": 1}]),
}


def tools(*names: str) -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": f"tool{list(CASES).index(name)}", "parameters": CASES[name][0]}}
        for name in names
    ]


def functions(*names: str) -> list[Any]:
    return [tool["function"] for tool in tools(*names)]


@pytest.mark.parametrize("name", CASES)
async def test_the_engine_gets_a_schema_that_stands_alone(name: str) -> None:
    offered = tools(*CASES)
    chosen = tools(name)[0]["function"]["name"]
    said = json.dumps([{"name": chosen, "parameters": CASES[name][1][0]}])
    async with Rig(ProxySettings(enforce_tool_choice=True), "qwen3", "llama3_json") as rig:
        choice = {"type": "function", "function": {"name": chosen}}
        got = await both(rig, said, tools=offered, tool_choice=choice)
        assert got.calls == [(chosen, json.dumps(CASES[name][1][0]))] and got.node.altered == f"named:{chosen}"
        await turn(rig, said, tools=offered, tool_choice="required")
        for at, count in ((0, 1), (2, len(CASES))):
            sampling = rig.engine.calls[at][1]
            assert sampling.structured is not None
            schema = sampling.structured["json"]
            assert len(schema["items"]["anyOf"]) == count
            _check(schema, name, chosen)


def _check(schema: Schema, name: str, function: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    own = jsonschema.Draft202012Validator(CASES[name][0])
    for arguments, accepted in [(a, True) for a in CASES[name][1]] + [(a, False) for a in CASES[name][2]]:
        assert own.is_valid(arguments) == accepted, "the schema of the test case is wrong"
        assert validator.is_valid([{"name": function, "parameters": arguments}]) == accepted


@pytest.fixture(scope="module")
def compiler() -> tuple[Any, Any, Any]:
    xgrammar = pytest.importorskip("xgrammar")
    tokenizer = byte_tokenizer(template("qwen2_5"))
    info = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=len(tokenizer), stop_token_ids=[tokenizer.eos_token_id]
    )
    return xgrammar, tokenizer, xgrammar.GrammarCompiler(info)


def _accepts(parts: tuple[Any, Any, Any], compiled: Any, text: str) -> bool:
    xgrammar, tokenizer, _ = parts
    matcher = xgrammar.GrammarMatcher(compiled)
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    return all(matcher.accept_token(token) for token in ids)


@pytest.mark.parametrize("name", CASES)
def test_the_engines_grammar_accepts_the_same(compiler: tuple[Any, Any, Any], name: str) -> None:
    """vLLM uses xgrammar. It compiles the schema, for a JSON list of calls and for hermes calls."""
    (function,) = functions(name)
    as_json = compiler[2].compile_json_schema(json.dumps(calls_schema(functions(*CASES), once=False)))
    as_hermes = compiler[2].compile_structural_tag(
        json.dumps(HermesParser().structural_tag(functions(name), once=True))
    )
    for arguments, accepted in [(a, True) for a in CASES[name][1]] + [(a, False) for a in CASES[name][2]]:
        text = json.dumps(arguments)
        call = json.dumps([{"name": function["name"], "parameters": arguments}])
        assert _accepts(compiler, as_json, call) == accepted, call
        call = f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {text}}}\n</tool_call>'
        assert _accepts(compiler, as_hermes, call) == accepted, call


@pytest.mark.parametrize("parser", ["hermes", "llama3_json"])
@pytest.mark.parametrize("reference", ["#/$defs/Missing", "#nowhere", "#/properties/a/7"])
async def test_a_reference_to_nothing_is_the_requests_fault(parser: str, reference: str) -> None:
    function = {"name": "f", "parameters": obj({"a": {"$ref": reference}})}
    body = {"messages": USER, "tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    async with Rig(ProxySettings(), "qwen3", parser) as rig:
        answer = await rig.post(rig.settings.client_key, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
        assert reference in answer.json()["error"]["message"]
