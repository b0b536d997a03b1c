"""The built-in workflow on real tau2 episodes: limits, faults, and a different official score."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.environment import EnvironmentSettings, TaskRef, find_task, outcomes
from tau2_lightning.environment.blueprints import Blueprint
from tau2_lightning.environment.scoring import fast_reward_info
from tau2_lightning.errors import InfrastructureFault, ScoreDisagreement, SharedStateChanged
from tau2_lightning.rollout.episode.client import PolicyClient
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow

SETTINGS = EnvironmentSettings("mock", solo_mode=True)
GOLD = [("create_task", {"user_id": "user_1", "title": "Important Meeting"}), ("done", {})]


def task() -> TaskRef:
    return find_task("mock", "create_task_1")


Handler = Callable[[Mapping[str, Any]], tuple[int, Any]]


class Policy(PolicyClient):
    """Answers each request with ``handle``, which returns a status and a JSON body."""

    def __init__(self, handle: Handler) -> None:
        super().__init__(timeout=60)
        self._handle = handle

    async def _ask(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        return self._handle(body)


def answer(calls: list[tuple[str, dict[str, Any]]]) -> Handler:
    """A policy that makes one call after the other."""
    left: Iterator[tuple[str, dict[str, Any]]] = iter(calls)

    def handle(body: Mapping[str, Any]) -> tuple[int, Any]:
        name, arguments = next(left)
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"id": f"c{len(body['messages'])}", "type": "function", "function": function}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return 200, {"choices": [{"message": message}]}

    return handle


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def play(handle: Handler, **options: Any) -> dict[str, Any]:
    return await Tau2Workflow(SETTINGS, **options).run({"task": task(), "seed": 3}, client=Policy(handle))


async def test_gold_calls_earn_tau2s_reward_which_the_official_evaluator_confirms(tmp_path: Path) -> None:
    result = await play(answer(GOLD), official_check=1.0, evidence=tmp_path)
    assert result["reward"] == result["outcome"].reward == 1.0
    assert not left_in(tmp_path)


async def test_a_score_that_tau2_does_not_confirm_stops_the_run_and_leaves_the_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = fast_reward_info

    def generous(*args: Any) -> Any:
        return honest(*args).model_copy(update={"reward": 1.0})

    monkeypatch.setattr(outcomes, "fast_reward_info", generous)
    wrong = [("create_task", {"user_id": "user_1", "title": "Another", "size": 10**30}), ("done", {})]
    unchecked = await play(answer(wrong), official_check=0.0, evidence=tmp_path)
    assert unchecked["reward"] == 1.0
    with pytest.raises(ScoreDisagreement, match="fast path 1, tau2 0") as caught:
        await play(answer(wrong), official_check=1.0, evidence=tmp_path)
    assert not isinstance(caught.value, InfrastructureFault), "the episode would be retried and excluded"
    (written,) = left_in(tmp_path)
    assert str(written) in str(caught.value)
    episode = json.loads(written.read_text())
    assert episode["task_id"] == "create_task_1"
    assert episode["messages"][0]["tool_calls"][0]["arguments"]["title"] == "Another"


async def test_records_that_an_episode_changed_for_all_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(self: Blueprint) -> None:
        raise SharedStateChanged("the pristine mock database has changed")

    monkeypatch.setattr(Blueprint, "verify_pristine", changed)
    with pytest.raises(ScoreDisagreement, match="pristine mock database"):
        await play(answer(GOLD), official_check=1.0, evidence=tmp_path)


async def test_a_full_context_ends_the_episode_as_the_agents_own_doing() -> None:
    gold = answer(GOLD)
    turns: list[int] = []

    def overlong(body: Mapping[str, Any]) -> tuple[int, Any]:
        turns.append(1)
        if len(turns) == 1:
            return gold(body)
        return 400, {"error": {"code": "context_length_exceeded", "message": "4097 > 4096"}}

    outcome = (await play(overlong))["outcome"]
    assert (outcome.reward, outcome.termination_reason, outcome.turns) == (0.0, "context_length_exceeded", 1)


async def test_an_opening_that_does_not_fit_is_a_fault_which_comes_again() -> None:
    """Nothing was sampled, so the policy has decided nothing, and a second try would ask the same."""

    def overlong(body: Mapping[str, Any]) -> tuple[int, Any]:
        return 400, {"error": {"code": "context_length_exceeded", "message": "4097 > 4096"}}

    with pytest.raises(InfrastructureFault, match="4097 > 4096") as caught:
        await play(overlong)
    assert caught.value.name == "episode:prompt_too_long" and not caught.value.again


@pytest.mark.parametrize(
    ("status", "code", "name"), [(400, "bad_request", "proxy:rejected"), (503, "engine_crash", "engine:crash")]
)
async def test_what_is_not_the_agents_doing_is_a_fault_and_never_a_reward(status: int, code: str, name: str) -> None:
    def broken(body: Mapping[str, Any]) -> tuple[int, Any]:
        return status, {"error": {"code": code, "message": "no"}}

    with pytest.raises(InfrastructureFault) as caught:
        await play(broken)
    assert caught.value.name == name
