"""The tables of benchmarks/learning.py, against counts done by hand."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import pytest

from tau2_lightning.environment import load_tasks
from tau2_lightning.trajectory import EpisodeOutcome

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import learning_report as report


def episode(task: str, reward: float, *, transferred=False, expected=False, actions=(), mistakes=None) -> dict:
    outcome = EpisodeOutcome(
        task_id=task, reward=reward, termination_reason="agent_stop", turns=10, tool_calls=10, tool_errors=1,
        transferred=transferred, transfer_expected=expected, user="none", actions=tuple(actions),
        mistakes=mistakes or {},
    )  # fmt: skip
    return json.loads(json.dumps(asdict(outcome)))


def evaluation(step: int, split: str, *, greedy: bool, episodes: list[dict]) -> dict:
    return {"step": step, "split": split, "greedy": greedy, "excluded": {}, "sampled_tokens": 1, "episodes": episodes}


SKILL = "toggle_roaming"
TASKS = [task.task_id for task in load_tasks("telecom", "test", solo_mode=True)]
NEEDY = next(task for task in TASKS if SKILL in report.needs(task))
OTHER = next(task for task in TASKS if SKILL not in report.needs(task))


def seed(number: int, after: list[float]) -> dict:
    """NEEDY fails before; ``after`` are the rewards of its four trials. OTHER always succeeds, by transferring."""

    def played(rewards: list[float], actions: list[str]) -> list[dict]:
        mine = [episode(NEEDY, reward, actions=actions if reward else ()) for reward in rewards]
        return mine + [episode(OTHER, 1.0, transferred=True, expected=number == 1) for _ in rewards]

    evaluations = []
    for step, rewards, actions in ((0, [0.0] * 4, []), (5, after, [SKILL])):
        for split in ("test", "train"):
            for greedy in (False, True):
                evaluations.append(evaluation(step, split, greedy=greedy, episodes=played(rewards, actions)))
    steps = [{"step": i, "reward/mean": i / 4, "entropy/all/mean": 0.1, "tokens/trained": 100.0} for i in range(5)]
    wall = {"warm start": 60.0, "training": 120.0, "all": 240.0}
    return {"seed": number, "weak_skills": [SKILL], "evaluations": evaluations, "steps": steps,
            "seconds": {"train": 60.0}, "wall": wall}  # fmt: skip


def test_pass_hat_k_is_pooled_over_seeds_within_tasks():
    seeds = [seed(1, [1.0, 1.0, 0.0, 0.0]), seed(2, [1.0, 1.0, 1.0, 1.0])]
    played = [report.outcomes(report.select(s, "after", "test", greedy=False)) for s in seeds]
    assert report.pooled(played, report.hat(1)).value == pytest.approx(fmean([(0.5 + 1) / 2, 1]))
    # by hand: comb(2, 2) / comb(4, 2) = 1/6 for the first seed's NEEDY; trials of different policies are not mixed
    assert report.pooled(played, report.hat(2)).value == pytest.approx(fmean([(1 / 6 + 1) / 2, 1]))
    assert report.pooled(played, report.hat(5)).tasks == 0


def test_before_and_after_are_told_apart():
    one = seed(1, [1.0] * 4)
    assert {e["reward"] for e in report.select(one, "before", "test", greedy=True)["episodes"]} == {0.0, 1.0}
    assert {e["reward"] for e in report.select(one, "after", "test", greedy=True)["episodes"]} == {1.0}


def test_transfers_that_were_asked_for_are_not_counted():
    asked, unasked = (
        report.pooled([report.outcomes(report.select(seed(n, [1.0] * 4), "after", "test", greedy=False))],
                      report.plain(report.transferred)) for n in (1, 2)
    )  # fmt: skip
    assert (asked.value, asked.tasks) == (0.0, 1)
    assert (unasked.value, unasked.tasks) == (0.5, 2)


def test_the_skill_table_looks_at_tasks_that_need_the_skill():
    row = report.skills([seed(1, [1.0, 1.0, 0.0, 0.0])])[-1]
    cells = [cell.strip().split(" ")[0] for cell in row.strip("|").split("|")]
    assert cells == [f"`{SKILL}`", "1", "0.000", "0.500", "0.000", "0.500"]


def test_mistakes_are_counted_per_turn():
    episodes = [episode(OTHER, 0.0, mistakes={"malformed_arguments": 2}), episode(OTHER, 1.0)]
    assert report.malformed(report.outcomes({"episodes": episodes})) == pytest.approx(2 / 20)


def test_the_worst_seed_is_what_the_aims_see():
    found = report.ratios([seed(1, [1.0, 1.0, 0.0, 0.0]), seed(2, [1.0] * 4)])
    assert found["sampled_pass^1_after"] == pytest.approx(0.75)
    assert found["sampled_pass^1_before"] == pytest.approx(0.5)
    assert found["unasked_transfers_after"] == pytest.approx(0.5)
    assert found["training_minutes"] == pytest.approx(2.0)


def test_tables_and_figure_are_made(tmp_path):
    seeds = [seed(1, [1.0] * 4), seed(2, [1.0, 0.0, 1.0, 1.0])]
    text = report.report(seeds)
    assert "| all | after |" in text and "Minutes by phase" in text
    target = tmp_path / "curves.svg"
    report.figure(seeds, target)
    first = target.read_bytes()
    report.figure(seeds, target)
    assert first.startswith(b"<?xml") and target.read_bytes() == first
