"""The run's template arguments and a session's defaults, and how a request's own fields replace them."""

from __future__ import annotations

from typing import Any

import pytest

from tau2_lightning.rollout.proxy.prompts import with_defaults
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.cases import foreign
from tests.cases.foreign import ask, stage, tasks
from tests.rollout.proxy.rig import Rig

USER = [{"role": "user", "content": "hi"}]
SHUT = "<think>\n\n</think>\n\n"  # how Qwen3's template turns thinking off


def prompts(rig: Rig) -> list[str]:
    return [rig.tokenizer.decode(tokens) for tokens, _, _ in rig.engine.calls]


@pytest.mark.parametrize("thinking", [None, True, False])
async def test_thinking_is_the_runs_in_sessions_and_for_plain_clients(thinking: bool | None) -> None:
    kwargs = {} if thinking is None else {"enable_thinking": thinking}
    async with Rig(ProxySettings(template_kwargs=kwargs), "qwen3") as rig:
        session = rig.store.start()
        for key in (session.api_key, rig.settings.client_key):
            assert (await rig.post(key, {"messages": USER})).status_code == 200
        assert [prompt.endswith(SHUT) for prompt in prompts(rig)] == [thinking is False] * 2


async def test_a_requests_own_arguments_win_then_the_sessions() -> None:
    async with Rig(ProxySettings(template_kwargs={"enable_thinking": False}), "qwen3") as rig:
        plain, thinking = rig.store.start(), rig.store.start(chat_template_kwargs={"enable_thinking": True})
        on, off = ({"chat_template_kwargs": {"enable_thinking": value}} for value in (True, False))
        for session, more in ((plain, {}), (plain, on), (thinking, {}), (thinking, off)):
            assert (await rig.post(session.api_key, {"messages": USER, **more})).status_code == 200
        assert [prompt.endswith(SHUT) for prompt in prompts(rig)] == [True, False, False, True]


async def test_a_foreign_agents_episodes_have_it_too() -> None:
    async def play(client: Any, data: Any) -> float:
        answer = await ask(client)
        said = {"role": "assistant", "content": answer.choices[0].message.content}
        await ask(client, [*foreign.USER, said, *USER])
        return 1.0

    async with stage(play, template_kwargs={"enable_thinking": False}) as at:
        # The template "tiny" ignores the word; what counts is that every turn of the session has the same setting.
        rollouts, _ = await at.collector.evaluate([next(tasks())], 1, deadline=20)
        assert len(rollouts[0].trajectories) == 1 and len(rollouts[0].trajectories[0].turns) == 2


@pytest.mark.parametrize(
    ("session", "body", "fixed", "expected"),
    [
        ({"max_completion_tokens": 100}, {"max_tokens": 5}, {}, {"max_tokens": 5}),
        ({"max_tokens": 100}, {"max_completion_tokens": 5}, {}, {"max_completion_tokens": 5}),
        ({"max_tokens": 100}, {"max_completion_tokens": None}, {}, {"max_tokens": 100}),
        ({}, {"max_completion_tokens": 9}, {"max_tokens": 7}, {"max_tokens": 7}),
        ({"temperature": 0.5}, {"temperature": 1.0}, {"temperature": 0.0}, {"temperature": 0.0}),
        ({"top_p": 0.5}, {"temperature": None}, {}, {"top_p": 0.5}),
    ],
)
def test_what_is_named_closer_to_the_request_wins(
    session: dict[str, Any], body: dict[str, Any], fixed: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert with_defaults(body, session, fixed) == expected


async def test_a_request_may_ask_for_fewer_tokens_than_its_session() -> None:
    async with Rig(ProxySettings()) as rig:
        session = rig.store.start(sampling={"max_completion_tokens": 100})
        assert (await rig.post(session.api_key, {"messages": USER, "max_tokens": 5})).status_code == 200
        assert rig.engine.calls[-1][1].max_tokens == 5
