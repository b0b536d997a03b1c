"""tau2's own tools read the results files and compute the same rewards and the same pass^k."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tau2_lightning.environment import EnvironmentSettings, UserSettings, load_tasks, write_results
from tau2_lightning.environment.demonstrations import _at_once, _diagnose, _follow, plan_for
from tau2_lightning.environment.dialogue import Dialogue
from tau2_lightning.environment.settings import JudgeSettings
from tau2_lightning.environment.tasks import get_task
from tau2_lightning.environment.telecom_expert import forgetful
from tau2_lightning.trajectory import EpisodeOutcome
from tests.environment.helpers import banking, calls, play, says, scripted, solo, unjudged, upstream_only
from tests.environment.judge_server import judging


def episodes(settings: EnvironmentSettings, count: int, trials: int) -> list[EpisodeOutcome]:
    """Episodes of a demonstrator that leaves out steps at random, so that some fail."""
    rng, outcomes = random.Random(5), []
    tasks = load_tasks(settings.domain, "train", solo_mode=settings.solo_mode)[:count]
    for _ in range(trials):
        for task in tasks:
            dialogue, plan = Dialogue(task, settings, seed=3), plan_for(task, settings)
            if isinstance(plan, list):
                _at_once(_follow(dialogue, (m for skill, m in plan if not skill or rng.random() > 0.3)))
            else:
                _at_once(_diagnose(dialogue, forgetful(plan, lambda _: rng.random() < 0.3)))
            outcomes.append(dialogue.outcome())
    return outcomes


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(solo(policy="none"), id="solo"),
        pytest.param(scripted("telecom"), id="dual"),
        pytest.param(scripted("mock"), id="mock"),
        pytest.param(unjudged("retail"), id="retail"),
        pytest.param(banking("golden_retrieval"), id="banking", marks=upstream_only),
    ],
)
def test_tau2_regrades_to_the_same_rewards(
    settings: EnvironmentSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tau2.data_model.simulation import Results
    from tau2.metrics.agent_metrics import compute_metrics
    from tau2.scripts.evaluate_trajectories import evaluate_trajectories

    if settings.retrieval.config:
        # tau2 ignores the configuration in the file and regrades with its default, which needs a service.
        monkeypatch.setattr("tau2.domains.banking_knowledge.environment.DEFAULT_RETRIEVAL_VARIANT", "no_knowledge")
    outcomes = episodes(settings, 4, trials=3)
    path = write_results(tmp_path / "run" / "r.json", outcomes, settings, agent="tiny", num_trials=3, seed=3)
    evaluate_trajectories([str(path)], str(tmp_path / "out"))
    regraded = Results.load(tmp_path / "out" / "updated_r.json")
    assert [s.reward_info.reward for s in regraded.simulations] == [o.reward for o in outcomes]
    assert len({o.reward for o in outcomes}) == 2, "the check needs successes and failures"
    assert [entry.name for entry in path.parent.iterdir()] == ["r.json"]
    theirs = compute_metrics(regraded)
    if find_spec("torch") is not None:  # the environment of `make test-upstream` has no torch
        from tau2_lightning.evaluation.summary import summarize

        ours = summarize(outcomes, max_k=3)
        assert {k: e.value for k, e in ours.pass_hat.items()} == pytest.approx(theirs.pass_hat_ks)
    assert regraded.info.agent_info.llm == "tiny" and [s.trial for s in regraded.simulations[::4]] == [0, 1, 2]


def tau2(*words: str, typed: str = "", **variables: str) -> str:
    """The output of a command of tau2."""
    environment = os.environ | {"COLUMNS": "200", "TERM": "dumb"} | variables
    command = [sys.executable, "-m", "tau2.cli", *words]
    done = subprocess.run(command, input=typed, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.e2e
def test_tau2s_own_commands_regrade_and_show_the_file(tmp_path: Path) -> None:
    from tau2.data_model.simulation import Results

    settings = solo(policy="none")
    outcomes = episodes(settings, 4, trials=3)
    path = write_results(tmp_path / "r.json", outcomes, settings, agent="tiny", num_trials=3, seed=3)
    tau2("evaluate-trajs", str(path), "-o", str(tmp_path / "out"))
    regraded = Results.load(tmp_path / "out" / "updated_r.json")
    assert [s.reward_info.reward for s in regraded.simulations] == [o.reward for o in outcomes]
    assert len({o.reward for o in outcomes}) == 2, "the check needs successes and failures"
    # The keys open the file, its metrics, its second episode (without a note) and its first task, then quit: by 5, or
    # by 6 where 5 shows the run's configuration (upstream).
    keys = ["1", "1", "2", "3", "2", "", "4", "1", "5", "6"]
    shown = tau2("view", "--file", str(path), typed="\n".join(keys) + "\n")
    assert "Loaded 12 simulations from" in shown and "Error loading" not in shown
    average = sum(o.reward for o in outcomes) / 12
    assert f"{average:.4f}" in shown and outcomes[0].task_id in shown
    assert "Thanks for using the simulation viewer" in shown


async def test_agent_errors_and_aborted_episodes_are_in_the_file_with_reward_zero(tmp_path: Path) -> None:
    from tau2.data_model.simulation import Results

    settings = solo()
    task = load_tasks("telecom", "train", solo_mode=True)[0]
    outcomes = []
    for ending in ("text", "abort"):
        dialogue = Dialogue(task, settings)
        await dialogue.start()
        if ending == "text":
            await dialogue.reply(says("I give up"))
        else:
            dialogue.abort("context_overflow")
        outcomes.append(dialogue.outcome())
    path = write_results(tmp_path / "r.json", outcomes, settings, agent="tiny", num_trials=2)
    loaded = Results.load(path)
    assert [s.reward_info.reward for s in loaded.simulations] == [0.0, 0.0]


@upstream_only
async def test_upstreams_own_command_confirms_judged_episodes(tmp_path: Path) -> None:
    """``tau2 evaluate-trajs`` asks the judge again; a judge with the same verdicts gives the same rewards."""
    from tau2.data_model.simulation import Results

    def holds(conversation: str, assertion: str) -> bool:
        return zlib.crc32((conversation + assertion).encode()) % 3 > 0

    tasks = [task for task in load_tasks("retail", "base") if get_task(task).evaluation_criteria.nl_assertions][:8]
    bye = [says("Goodbye!")] * 3
    async with judging(holds) as (server, url):
        settings = scripted("retail", judge=JudgeSettings("judge-8b", url))
        outcomes = []
        for task in tasks:
            gold = [calls((a.name, a.arguments)) for a in get_task(task).evaluation_criteria.actions or ()]
            outcomes.append((await play(task, settings, [*gold, *bye])).outcome())
        path = write_results(tmp_path / "r.json", outcomes, settings, agent="tiny", num_trials=1)
        asked_by_us = len(server.requests)
        # tau2 always asks the same model of OpenAI; environment variables can only set its address.
        service = {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": url, "OPENAI_API_BASE": url}
        out = str(tmp_path / "out")
        await asyncio.to_thread(lambda: tau2("evaluate-trajs", str(path), "-o", out, **service))
    assert asked_by_us == len(tasks) == len(server.requests) - asked_by_us
    regraded = Results.load(tmp_path / "out" / "updated_r.json").simulations
    assert [run.reward_info.reward for run in regraded] == [outcome.reward for outcome in outcomes]
    assert {outcome.reward_breakdown["NL_ASSERTION"] for outcome in outcomes} == {0.0, 1.0}
    breakdowns = [{kind.value: value for kind, value in run.reward_info.reward_breakdown.items()} for run in regraded]
    assert breakdowns == [dict(outcome.reward_breakdown) for outcome in outcomes]


def test_no_secret_of_the_users_arguments_is_written(tmp_path: Path) -> None:
    arguments = {"temperature": 0.5, "api_key": "sk-hidden", "extra_headers": {"x-api-key": "sk-hidden"}}
    user = UserSettings("llm", llm="user-7b", llm_args=arguments)
    path = write_results(tmp_path / "r.json", [], EnvironmentSettings("retail", user=user), agent="a", num_trials=1)
    assert "sk-hidden" not in path.read_text() and '"temperature": 0.5' in path.read_text()
