"""The dialogues of dashboards: which ones, and as what text."""

from __future__ import annotations

import pytest

from tau2_lightning.callbacks.dialogues import DIALOGUE, sampled, shown, transcript
from tests.report.made_run import batch, episode, failed


def test_the_best_and_the_worst_of_one_task_come_first() -> None:
    episodes = [
        *(episode(0, n, group=0, sample=n, reward=0.5) for n in range(3)),
        *(episode(0, 3 + n, group=1, sample=n, reward=reward) for n, reward in enumerate((0.25, 1.0, 0.0))),
        failed(0, 6),
    ]
    first, second, *others = sampled(episodes, 4, seed=0)
    assert (first.group, first.reward, second.group, second.reward) == ("1", 1.0, "1", 0.0)
    assert len(others) == 2 and all(one.reward is not None for one in others)


def test_the_number_is_bounded_and_the_choice_is_repeatable() -> None:
    episodes = batch(3)
    assert [len(sampled(episodes, most, 1)) for most in (0, 1, 5, 100)] == [0, 1, 5, 14]
    one, again, other = (sampled(episodes, 6, seed) for seed in (1, 1, 2))
    assert [id(e) for e in one] == [id(e) for e in again] != [id(e) for e in other]
    assert sampled([failed(0, 0)], 4, 0) == [] and len(sampled([episode(0, 0)], 4, 0)) == 1


def test_a_line_has_the_facts_and_the_text() -> None:
    one = shown(episode(2, 0, reward=1.0, mistakes={"unknown_tool": 1}, user_faults={"leaks_instructions": 1}))
    assert (one.step, one.task, one.reward, one.mistakes) == (2, "task_0", 1.0, "unknown_tool 1")
    assert one.reward_parts == "DB 1, COMMUNICATE 1" and len(one.row()) == len(one.columns())
    parts = one.dialogue.split("\n\n")
    assert parts[0].startswith("**system**: (") and "Follow the policy" not in one.dialogue
    assert parts[1] == "**user**: Hello, this is task 0."
    assert parts[2] == '**assistant**: `check_line({"id": "L1"})`'
    assert parts[-1] == "**user**: Okay. [leaks_instructions]"
    assert "reward 1.0" in one.markdown() and "turns 2" in one.markdown() and one.markdown().endswith(one.dialogue)
    assert "reward 0.0" in shown(episode(2, 0, reward=0.0)).markdown(), "nothing is left out because it is zero"


def test_a_text_is_bounded_and_can_be_written() -> None:
    text = transcript([{"role": "user", "content": "x" * 100_000}, {"role": "assistant", "content": "half \ud83d"}])
    assert "98000 more characters" in text and "half ?" in text
    assert len(transcript([{"role": "user", "content": "y" * 1900}] * 40)) < DIALOGUE + 50
    text.encode()


@pytest.mark.parametrize("by", ["user", None])
def test_tools_of_the_user_are_named(by: str | None) -> None:
    text = transcript([{"role": "tool", "content": "ok"} | ({"by": by} if by else {})])
    assert text == ("**tool of the user**: ok" if by else "**tool**: ok")
