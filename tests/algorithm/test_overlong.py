"""DAPO's overlong penalty, as the shipped configuration applies it: to the tokens of a turn, which have a limit."""

from __future__ import annotations

import pytest

from tau2_lightning.algorithm import DAPO, GRPO, PolicyGradient
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.crediting import teaches
from tau2_lightning.run.algorithm import instantiate_algorithm
from tau2_lightning.run.compose import load_config
from tau2_lightning.trajectory import Group, Rollout, Turn
from tests.batch.groups import trajectory


def shipped(*words: str) -> PolicyGradient:
    return instantiate_algorithm(load_config([*words], check=False))


def group(*episodes: list[tuple[int, str]]) -> Group:
    """Solved episodes of turns with these sampled tokens and finish reasons."""
    rollouts = []
    for sample, turns in enumerate(episodes):
        at, spans = 1, []
        for tokens, reason in turns:
            spans.append(Turn(at, at + tokens, finish_reason=reason))
            at += tokens + 2
        row = trajectory(list(range(at)), [(turn.start, turn.end) for turn in spans], turns=tuple(spans))
        rollouts.append(Rollout("t", "g", sample, 1.0, (row,)))
    return Group("g", "t", tuple(rollouts))


@pytest.mark.parametrize("words", [(), ("gconfig.max_new_tokens=1024", "gconfig.max_tokens=8192")])
def test_the_shipped_dapo_penalises_a_turn_that_its_limit_cut_off(words) -> None:
    limit = load_config([*words], check=False).gconfig.max_new_tokens
    found = group([(10, "stop"), (limit, "length")], [(10, "stop"), (10, "stop")])
    dapo = shipped("algorithm=dapo", *words)
    assert teaches(found, dapo)
    batch = Batch.from_groups([found], dapo, version=0)
    assert batch.statistics["shaped_reward/min"] == pytest.approx(0.0) and batch.statistics["shaped_reward/max"] == 1.0
    cut, whole = (row.advantages[row.loss_mask] for row in batch.rows)
    assert (cut < 0).all() and (whole > 0).all()
    assert not teaches(found, shipped("algorithm=grpo", *words)), "control: both episodes are solved"


def test_the_penalty_begins_a_fifth_below_the_limit_and_lands_on_its_turn() -> None:
    dapo = DAPO(overlong_max_length=100)
    lengths = [1, 80, 81, 90, 100, 300]
    penalties = [dapo.turn_penalty(n, truncated=False, malformed=False) for n in lengths]
    assert penalties == pytest.approx([0.0, 0.0, 0.05, 0.5, 1.0, 1.0])
    assert dapo.turn_penalty(7, truncated=True, malformed=False) == 1.0, "the context was full"
    # The penalty of an early long turn does not reach a later turn.
    found = group([(90, "stop"), (10, "stop")], [(10, "stop"), (10, "stop")])
    (row, _) = Batch.from_groups([found], DAPO(overlong_max_length=100, std_level="none"), version=0).rows
    assert row.advantages[1] == pytest.approx(-0.25) and row.advantages[100] == pytest.approx(0.25)


def test_a_penalty_on_episodes_looks_at_all_their_tokens() -> None:
    algorithm = GRPO(overlong_max_length=100, overlong_buffer=50)
    assert algorithm.turn_penalty(100, truncated=True, malformed=True) == 0.0
    assert teaches(group([(40, "stop"), (40, "stop")], [(40, "stop")]), algorithm)
    assert not teaches(group([(20, "stop"), (20, "stop")], [(40, "stop")]), algorithm)


def test_a_malformed_turn_pays_both_penalties() -> None:
    assert DAPO(invalid_format_penalty=0.25).turn_penalty(8192, truncated=False, malformed=True) == 1.25
