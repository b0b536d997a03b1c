"""B2: templates that need a user message first: the plan says how a ticket and a greeting are handled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning import train
from tau2_lightning.environment import Dialogue, EnvironmentSettings, UserSettings, load_tasks
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.compose import load_config
from tests.cases.templated import GOLD, prompts, rig_of, solo_episode, with_template, words_of
from tests.jobs import small_policy
from tests.rollout.chat import behaviours as b

SAID = ['<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>' % (n, str(a).replace("'", '"')) for n, a in GOLD]  # noqa: UP031
KINDS = {"needs a user": b.NEEDS_USER, "user first": b.USER_FIRST}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


@pytest.mark.parametrize("kind", KINDS)
async def test_b02_the_ticket_is_the_users_turn_in_a_whole_episode(kind: str) -> None:
    async with rig_of(KINDS[kind]) as rig:
        result, session = await solo_episode(rig, SAID)
        assert result["reward"] == 1.0 and session.branches == 0
        first, second = prompts(rig)
        system, _, rest = first.partition("<|im_start|>user\n")
        assert rest.startswith("<ticket>") and rest.count("</ticket>") == 1 and "<ticket>" not in system
        assert "<policy>" in system and second.startswith(first)


async def test_b02_where_the_template_takes_the_messages_nothing_moves() -> None:
    async with rig_of(b.PLAIN) as rig:
        await solo_episode(rig, SAID)
        assert "<|im_start|>user" not in prompts(rig)[0]


@pytest.mark.parametrize(("source", "opener"), [(b.USER_FIRST, 1), (b.TOOLS_WITH_FIRST, 1), (b.NEEDS_USER, 0)])
async def test_b02_a_greeting_stays_the_assistants_turn(source: str, opener: int) -> None:
    settings = EnvironmentSettings("retail", user=UserSettings(kind="scripted"))
    dialogue = Dialogue(load_tasks("retail", "train", solo_mode=False)[0], settings)
    await dialogue.start()
    system, greeting, user = dialogue.messages
    assert (greeting["role"], user["role"]) == ("assistant", "user")
    async with rig_of(source) as rig:
        key = rig.store.start(tools=dialogue.tools).api_key
        answer = await rig.post(key, {"messages": dialogue.messages})
        assert answer.status_code == 200, answer.text
        (prompt,) = prompts(rig)
        assert f"<|im_start|>assistant\n{greeting['content']}<|im_end|>" in prompt
        assert prompt.count("Hello.") == opener and user["content"] in prompt and system["content"] in prompt


def test_b02_the_plan_says_it(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tau2_lightning.run.policy.check_prompts", lambda *_: None)  # no tiny context holds them
    folder = with_template(tiny, b.USER_FIRST, tmp_path / "policy")
    assert train.main(words_of(folder, "mode=plan")) == 0
    said = (
        "for the chat template: a conversation that does not begin with a user message gets one: the ticket, "
        "else 'Hello.'"
    )
    assert said in capsys.readouterr().out


def test_b02_what_no_placement_helps_is_refused_in_the_plan(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stubborn = b.chatml(check=b.refusing("messages[1] is defined and messages[1].content == 'Hello.'") + b.USER_CHECK)
    folder = with_template(tiny, stubborn, tmp_path / "policy")
    lost = "a ticket in a conversation without a user message; a greeting of the assistant"
    with pytest.raises(ConfigError, match=f"leaves out of the prompt: {lost}"):
        load_config(words_of(folder))
    assert train.main(words_of(folder, "mode=plan")) == 2
    assert "would not start here: actor.chat_template=None" in capsys.readouterr().out
