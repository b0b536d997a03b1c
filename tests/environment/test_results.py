"""Results files: tau2's own tools read them and give the same rewards and the same pass^k."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tau2_lightning.environment import EnvironmentSettings, load_tasks, write_results
from tau2_lightning.environment.demonstrations import _at_once, _diagnose, _follow, forgetful, plan_for
from tau2_lightning.environment.dialogue import Dialogue
from tau2_lightning.metrics import summarize
from tau2_lightning.rollout.trajectory import EpisodeOutcome
from tests.environment.helpers import says, scripted, solo


def episodes(settings: EnvironmentSettings, count: int, trials: int) -> list[EpisodeOutcome]:
    """Noisy demonstrator episodes: some fail, one ends in an agent error, one is cut off."""
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
    "settings", [solo(policy="none"), scripted("telecom"), scripted("mock")], ids=["solo", "dual", "mock"]
)
def test_tau2_regrades_to_the_same_rewards(settings: EnvironmentSettings, tmp_path: Path) -> None:
    from tau2.data_model.simulation import Results
    from tau2.metrics.agent_metrics import compute_metrics
    from tau2.scripts.evaluate_trajectories import evaluate_trajectories

    outcomes = episodes(settings, 4, trials=3)
    path = write_results(tmp_path / "run" / "r.json", outcomes, settings, agent="tiny", num_trials=3, seed=3)
    evaluate_trajectories([str(path)], str(tmp_path / "out"))
    regraded = Results.load(tmp_path / "out" / "updated_r.json")
    assert [s.reward_info.reward for s in regraded.simulations] == [o.reward for o in outcomes]
    assert len({o.reward for o in outcomes}) == 2, "the check needs successes and failures"
    assert [entry.name for entry in path.parent.iterdir()] == ["r.json"]
    theirs, ours = compute_metrics(regraded), summarize(outcomes, max_k=3)
    assert {k: e.value for k, e in ours.pass_hat.items()} == pytest.approx(theirs.pass_hat_ks)
    assert regraded.info.agent_info.llm == "tiny" and [s.trial for s in regraded.simulations[::4]] == [0, 1, 2]


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
