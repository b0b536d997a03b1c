"""The plan says how many tokens the openings of a step have, and how many of them are different."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning.run.compose import load_config
from tau2_lightning.run.openings import Openings, openings_of
from tau2_lightning.run.plan_tokens import step_tokens, token_lines
from tests.run.policies import qwen3_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3_policy(tmp_path_factory, 65_536)


def words(policy: Path, *more: str) -> list[str]:
    own = ["gconfig.max_tokens=65536", "rollout.tool_call_parser=hermes", "trainer.accelerator=cpu"]
    tasks = ["train_dataset.batch_size=4", "gconfig.n_samples=8"]
    return ["domain=mock", "econfig.user=scripted", f"actor.path={policy}", "actor=tiny", *own, *tasks, *more]


def test_openings_of_a_step(policy: Path) -> None:
    config = load_config(words(policy), check=False)
    opening = openings_of(config, policy)["mock"]
    assert 0 < opening.common < opening.mean <= opening.longest
    (line,) = token_lines(config)
    total, different = step_tokens(opening, 4, 8)
    assert total == pytest.approx(32 * opening.mean) and different < total / 7
    assert f"32 rows of a step open with {total:,.0f} tokens, {different:,.0f} of them different" in line
    assert f"all tasks of mock share {opening.common:,}" in line and "goes through the model once" in line


@pytest.mark.parametrize("key", ["packing", "enable_tree_training"])
def test_a_run_that_computes_rows_apart_says_so(policy: Path, key: str) -> None:
    (line,) = token_lines(load_config(words(policy, f"actor.{key}=false"), check=False))
    assert line.endswith(f"all go through the model: actor.{key}=false")


def test_tokens_are_counted_once() -> None:
    # 3 tasks of 10 tokens, of which 8 are common, 4 samples each.
    assert step_tokens(Openings(10, 10.0, 8), 3, 4) == (120.0, 8 + 3 * 2.0)
    assert step_tokens(Openings(10, 10.0, 8), 1, 1) == (10.0, 10.0)


def test_an_unknown_policy_says_nothing() -> None:
    assert token_lines(load_config(["domain=mock"], check=False)) == []
