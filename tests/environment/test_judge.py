"""NL assertions: the configured judge decides on them at the end of an episode; scores are tau2's, none is skipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.environment import (
    Dialogue,
    EnvironmentSettings,
    ScoreMismatch,
    cross_check,
    generate_demonstrations,
    judge_stamp,
    load_tasks,
    write_results,
)
from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.settings import JudgeSettings
from tau2_lightning.environment.tasks import get_task
from tau2_lightning.errors import InfrastructureFault
from tests.environment.helpers import ASSERTIONS, calls, judged_domain, play, says, scripted, upstream_only
from tests.environment.judge_server import asked, said, verdict
from tests.environment.user_server import Answer, serving

BYE = says("Hello! Done. Goodbye!")


def judged(url: str, **limits: Any) -> EnvironmentSettings:
    judge = JudgeSettings("openai/judge-8b", url, llm_args={"temperature": 0.0}, **limits)
    return scripted(judged_domain(), judge=judge)


def replies(task: Any) -> list[dict[str, Any]]:
    actions = get_task(task).evaluation_criteria.actions
    return [*[calls((action.name, action.arguments)) for action in actions], BYE]


async def finished(url: str, **limits: Any) -> tuple[Any, Any, EnvironmentSettings]:
    settings = judged(url, **limits)
    task = load_tasks(settings.domain, "base")[0]
    return await play(task, settings, replies(task)), task, settings


@pytest.mark.parametrize(("met", "reward"), [((True, True), 1.0), ((True, False), 0.0)])
async def test_the_verdict_is_a_factor_of_the_reward(met: tuple[bool, bool], reward: float) -> None:
    async with serving(verdict(*met)) as (server, url):
        dialogue, _, settings = await finished(url)
    outcome = dialogue.outcome()
    assert outcome.reward == reward and outcome.reward_breakdown == {"DB": 1.0, "NL_ASSERTION": reward}
    (request,) = server.requests
    assert request["model"] == "judge-8b" and request["temperature"] == 0.0
    conversation, assertions = asked(request)
    assert assertions == list(ASSERTIONS) and "Hello! Done. Goodbye!" in conversation and "user: " in conversation
    info = outcome.simulation["reward_info"]
    assert [(check["nl_assertion"], check["met"]) for check in info["nl_assertions"]] == [
        ("wanted 0", met[0]),
        ("wanted 1", met[1]),
    ]
    assert info["info"]["judge"] == judge_stamp(settings)


async def test_tau2s_own_evaluator_agrees_and_asks_nobody_again() -> None:
    async with serving(verdict(True, True), verdict(True, False)) as (server, url):
        for reward in (1.0, 0.0):
            dialogue, task, settings = await finished(url)
            simulation = dialogue.outcome().simulation
            assert cross_check(simulation, task, settings) == reward
            spoilt = json.loads(json.dumps(simulation))
            spoilt["reward_info"]["nl_assertions"][1]["met"] ^= True
            with pytest.raises(ScoreMismatch):
                cross_check(spoilt, task, settings)
    assert len(server.requests) == 2


async def test_the_question_is_word_for_word_tau2s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request to our judge equals an intercepted completion call of tau2's own judge."""
    from tau2.utils import llm_utils

    async with serving(verdict(True, True)) as (server, url):
        dialogue, _, _ = await finished(url)
    sent: dict[str, Any] = {}

    def completion(**request: Any) -> Any:
        sent.update(request)
        raise ConnectionError("intercepted")

    monkeypatch.setattr(llm_utils, "completion", completion)
    with pytest.raises(ConnectionError, match="intercepted"):
        api.NLAssertionsEvaluator.evaluate_nl_assertions(dialogue._orchestrator.trajectory, list(ASSERTIONS))
    assert [(m["role"], m["content"]) for m in server.requests[0]["messages"]] == [
        (m["role"], m["content"]) for m in sent["messages"]
    ]
    assert sent["temperature"] == 0.0  # ours is the same, unless judge_llm_args change it


WRAPPED = verdict(True, True)["message"]["content"]


@pytest.mark.parametrize(
    "text", [f"```json\n{WRAPPED}\n```", f"<think>is {{it}} so?</think>\n{WRAPPED}", f"Here you are: {WRAPPED} Bye."]
)
async def test_a_verdict_may_be_wrapped(text: str) -> None:
    async with serving(said(text)) as (_, url):
        dialogue, task, settings = await finished(url)
        assert dialogue.outcome().reward == 1.0 == cross_check(dialogue.outcome().simulation, task, settings)


UNREADABLE = [
    said("I think it is fine."),
    said(""),
    said('{"results": []}'),
    verdict(True),  # tau2 accepts a missing verdict as success
    verdict(True, True, True),
    said('{"results": [{"expectedOutcome": "a", "reasoning": "b"}, {"expectedOutcome": "a", "reasoning": "b"}]}'),
    said(WRAPPED.replace("true", '"yes"')),
    said(WRAPPED[:-20]),
]


@pytest.mark.parametrize("bad", [*UNREADABLE, {"status": 500}, {"status": 429}])
async def test_a_judge_that_fails_once_is_asked_again_with_another_seed(bad: Answer) -> None:
    async with serving(dict(bad), verdict(True, True)) as (server, url):
        dialogue, _, _ = await finished(url)
    assert dialogue.outcome().reward == 1.0
    seeds = [request["seed"] for request in server.requests]
    assert len(seeds) == 2 and seeds[0] != seeds[1]


@pytest.mark.parametrize(
    ("bad", "cause"),
    [*[(bad, "bad_verdict") for bad in UNREADABLE], ({"status": 500}, "http_500"), ({"status": 401}, "http_401")],
)
async def test_a_judge_that_keeps_failing_is_a_fault_and_never_a_reward(bad: Answer, cause: str) -> None:
    async with serving(*[dict(bad) for _ in range(2)]) as (_, url):
        settings = judged(url, max_retries=1)
        task = load_tasks(settings.domain, "base")[0]
        dialogue = Dialogue(task, settings, seed=1)
        await dialogue.start()
        with pytest.raises(InfrastructureFault) as caught:
            for reply in replies(task):
                await dialogue.reply(reply)
    assert (caught.value.component, caught.value.cause) == ("judge", cause)
    with pytest.raises(InfrastructureFault, match="no verdict"):
        dialogue.outcome()


async def test_nobody_is_asked_where_tau2_asks_nobody() -> None:
    """The judge is not asked if neither agent nor user ended the episode, or if the reward needs no NL assertions."""
    async with serving() as (server, url):
        settings = judged(url)
        task = load_tasks(settings.domain, "base")[0]
        cut = await play(task, replace(settings, max_steps=2), [BYE])
        assert cut.outcome().termination_reason == "max_steps" and cut.outcome().reward == 0.0
        aborted = await play(task, settings, [])
        aborted.abort("context_length_exceeded")
        assert aborted.outcome().reward == 0.0
        other = await play(task, replace(settings, reward_basis=("DB",)), replies(task))
        assert other.outcome().reward == 1.0 and other.outcome().reward_breakdown == {"DB": 1.0}
        assert "judge" not in other.outcome().simulation["reward_info"]["info"]
    assert not server.requests


async def test_another_reward_basis_is_the_one_that_is_scored_and_written(tmp_path: Path) -> None:
    from tau2.data_model.simulation import Results

    settings = scripted("mock", reward_basis=("ACTION", "ENV_ASSERTION"))
    task = load_tasks("mock", "base")[0]
    done, missed = [(await play(task, settings, said)).outcome() for said in (replies(task), [BYE])]
    assert done.reward_breakdown["ACTION"] == 1.0 and missed.reward_breakdown["ACTION"] == 0.0
    assert "DB" not in done.reward_breakdown and done.reward == 1.0
    assert cross_check(missed.simulation, task, settings) == 0.0
    path = write_results(tmp_path / "r.json", [done, missed], settings, agent="tiny", num_trials=2)
    (written,) = Results.load(path).tasks
    assert written.evaluation_criteria.reward_basis == [api.RewardType.ACTION, api.RewardType.ENV_ASSERTION]
    assert get_task(task).evaluation_criteria.reward_basis != written.evaluation_criteria.reward_basis


def test_demonstrations_are_made_without_a_judge() -> None:
    settings = scripted(judged_domain(), judge=JudgeSettings("judge", "http://127.0.0.1:9/v1"))
    made = generate_demonstrations(settings, load_tasks(settings.domain, "base"), 3, 1, skip=0.0, official_share=1.0)
    assert [(d.reward, d.official) for d in made] == [(1.0, True)] * 3


def test_the_stamp_tells_judges_apart() -> None:
    first, other = judged("http://a/v1"), scripted(judged_domain(), judge=JudgeSettings("judge-70b"))
    assert judge_stamp(first)["model"] == "openai/judge-8b" and judge_stamp(first)["arguments"] == {"temperature": 0.0}
    assert judge_stamp(first) != judge_stamp(other)
    assert judge_stamp(first)["prompt_sha256"] == judge_stamp(other)["prompt_sha256"]
    assert len(judge_stamp(first)["prompt_sha256"]) == 64


def test_no_secret_is_in_the_stamp() -> None:
    arguments = {"top_p": 0.5, "api_key": "sk-hidden", "extra_headers": {"Authorization": "Bearer sk-hidden"}}
    settings = scripted(judged_domain(), judge=JudgeSettings("judge-70b", llm_args=arguments))
    found = judge_stamp(settings)
    assert "sk-hidden" not in str(found) and found["arguments"]["top_p"] == 0.5
    other = replace(settings, judge=replace(settings.judge, llm_args=arguments | {"api_key": "sk-other"}))
    assert judge_stamp(other) == found, "the same judge under another key is the same judge"


@upstream_only
async def test_upstreams_retail_is_scored_with_its_assertions() -> None:
    settings = scripted("retail", judge=JudgeSettings("judge-8b"))
    task = next(t for t in load_tasks("retail", "base") if get_task(t).evaluation_criteria.nl_assertions)
    wanted = get_task(task).evaluation_criteria.nl_assertions
    for met in (True, False):
        async with serving(verdict(*[met] * len(wanted))) as (server, url):
            settings = replace(settings, judge=replace(settings.judge, base_url=url))
            dialogue = await play(task, settings, [*replies(task), BYE, BYE])
            outcome = dialogue.outcome()
        assert outcome.reward_breakdown["NL_ASSERTION"] == float(met) and asked(server.requests[0])[1] == wanted
        assert cross_check(outcome.simulation, task, settings) == outcome.reward
