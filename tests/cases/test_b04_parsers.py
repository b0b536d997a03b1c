"""B4: the tool-call parser follows from the chat template; a parser that does not read its calls is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning import train
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.compose import load_config
from tests.cases.templated import rig_of, with_template, words_of
from tests.jobs import small_policy
from tests.rollout.chat import behaviours as b
from tests.rollout.proxy.fixtures import SPECIAL, byte_tokenizer
from tests.rollout.proxy.rig import ALL_MARKS, TOOLS

PYTHONIC = b.chatml(call="{{ ('[' if loop.first else ', ') }}{{ f.name }}({%- for key, value in f.arguments.items() -%}"
                    "{{ key }}={{ value | tojson if value is not boolean else ('True' if value else 'False') }}"
                    "{{ '' if loop.last else ', ' }}{%- endfor -%}){{ ']' if loop.last else '' }}")  # fmt: skip
#: Qwen3.5, which also wants a user's message.
_TEXT = "value | tojson if value is mapping or (value is sequence and value is not string) else value | string"
_ARGUMENT = "{{ '<parameter=' + key + '>\n' + (" + _TEXT + ") + '\n</parameter>\n' }}"
_ARGUMENTS = "{%- for key, value in f.arguments.items() -%}" + _ARGUMENT + "{%- endfor -%}"
XML = b.chatml(
    check=b.refusing("messages | selectattr('role', 'equalto', 'user') | list | length == 0"),
    call="{{ '<tool_call>\n<function=' + f.name + '>\n' }}" + _ARGUMENTS + "{{ '</function>\n</tool_call>' }}",
)
#: (template, its parser, a call in its format).
FORMATS = {
    "hermes": (b.PLAIN, "hermes", '<tool_call>\n{"name": "look", "arguments": {"at": "door"}}\n</tool_call>'),
    "llama": (b.TOOLS_WITH_FIRST, "llama3_json", '{"name": "look", "parameters": {"at": "door"}}'),
    "mistral": (b.MISTRAL, "mistral", '[TOOL_CALLS][{"name": "look", "arguments": {"at": "door"}}]'),
    "pythonic": (PYTHONIC, "pythonic", '[look(at="door")]'),
    "xml": (XML, "qwen3_coder", "<function=look>\n<parameter=at>\ndoor\n</parameter>\n</function>"),
}


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy for each format, with a tokenizer that has the marks of all of them."""
    tiny, folder = small_policy(tmp_path_factory), tmp_path_factory.mktemp("b04")
    made = {}
    for kind, (source, _, _) in FORMATS.items():
        made[kind] = with_template(tiny, source, folder / kind)
        byte_tokenizer(source, (*SPECIAL, *ALL_MARKS)).save_pretrained(made[kind])
    return made


@pytest.mark.parametrize("kind", FORMATS)
async def test_b04_calls_of_each_format_are_read(kind: str) -> None:
    source, _, call = FORMATS[kind]
    async with rig_of(source) as rig:
        session = rig.store.start(tools=TOOLS)
        rig.engine.script.append(call)
        body = {"messages": [{"role": "user", "content": "x"}]}
        message = (await rig.post(session.api_key, body)).json()["choices"][0]["message"]
        function = message["tool_calls"][0]["function"]
        assert (function["name"], function["arguments"].replace(" ", "")) == ("look", '{"at":"door"}')


@pytest.mark.parametrize("kind", FORMATS)
def test_b04_the_configuration_holds_the_chosen_parser(policies: dict[str, Path], kind: str) -> None:
    assert load_config(words_of(policies[kind])).rollout.tool_call_parser == FORMATS[kind][1]


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "hermes"])
def test_b04_a_parser_that_does_not_read_them_is_refused_with_the_one_that_does(
    policies: dict[str, Path], kind: str
) -> None:
    right = FORMATS[kind][1]
    with pytest.raises(
        ConfigError, match=rf"tool_call_parser='hermes': does not read .* such as .*Use {right}, or auto"
    ):
        load_config(words_of(policies[kind], "rollout.tool_call_parser=hermes"))
    load_config(words_of(policies[kind], f"rollout.tool_call_parser={right}"))


def test_b04_unknown_parsers_and_unreadable_calls_are_refused(policies: dict[str, Path], tmp_path: Path) -> None:
    folder = with_template(policies["hermes"], b.UNREADABLE, tmp_path / "policy")
    with pytest.raises(
        ConfigError, match=r"'auto': no parser reads the calls .*'CALL zq_lookup.*actor\.chat_template="
    ):
        load_config(words_of(folder))
    with pytest.raises(ConfigError, match=r"tool_call_parser='llama3_json': does not read .* Use hermes or auto"):
        load_config(["rollout.tool_call_parser=llama3_json"])


def test_b04_the_plan_shows_it(
    policies: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tau2_lightning.run.policy.check_prompts", lambda *_: None)  # no tiny context holds them
    assert train.main(words_of(policies["llama"], "mode=plan")) == 0
    told = capsys.readouterr().out
    assert "calls are read by llama3_json; it grows append-only" in told
    assert "the template writes one call per turn" in told
