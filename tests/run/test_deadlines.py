"""Every phase has a deadline that follows from a few keys; docs/reliability.md prints the table of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tau2_lightning
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.deadlines import COLLECTIVE_SECONDS, OWN_SECONDS, Deadline, collective_timeout, deadlines_of

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
PHASES = {
    "warm start", "engine start", "engine sleep", "generate", "user", "environment", "episode", "rollout", "validate",
    "train",     "weight sync", "save", "collective",
}  # fmt: skip


def found(*words: str) -> dict[str, Deadline]:
    return deadlines_of(load_config(["domain=mock", "trainer.accelerator=cpu", *words], check=False))


def test_every_phase_has_one_and_outer_ones_are_longer() -> None:
    deadlines = found()
    assert set(deadlines) == PHASES
    for inner, outer in (
        ("generate", "episode"),
        ("user", "episode"),
        ("environment", "rollout"),
        ("episode", "rollout"),
    ):
        assert deadlines[inner].seconds <= deadlines[outer].seconds, (inner, outer)
    alone = ("rollout", "validate", "train", "weight sync", "save", "engine start")
    for name in alone:
        assert deadlines["collective"].seconds >= deadlines[name].last + COLLECTIVE_SECONDS - OWN_SECONDS
    assert collective_timeout(deadlines).total_seconds() == deadlines["collective"].seconds


def test_the_phases_that_the_clock_counts_all_have_one() -> None:
    package = Path(tau2_lightning.__file__).parent
    counted = {
        name for path in package.rglob("*.py") for name in re.findall(r"clock\.phase\(\"([\w ]+)\"\)", path.read_text())
    }
    assert len(counted) >= 7 and counted <= PHASES


@pytest.mark.parametrize(
    ("word", "phase", "seconds"),
    [
        ("trainer.train_timeout=77", "train", 77),
        ("trainer.save_timeout=77", "save", 77),
        ("rollout.engine_start_timeout=77", "engine start", 77),
        ("rollout.episode_timeout=77", "episode", 77),
        ("rollout.collect_timeout=77", "rollout", 77),
        ("rollout.request_timeout=7", "generate", 7),
        ("econfig.user_deadline=77", "user", 77),
        ("valid_dataset.timeout=77", "validate", 77),
    ],
)
def test_each_follows_its_key(word: str, phase: str, seconds: float) -> None:
    assert found(word)[phase].seconds == seconds


def test_a_validation_of_several_domains_ends_with_the_last_of_them() -> None:
    words = ["domain=[mock,airline]", "econfig.user=scripted", "econfig.solo_mode=false", "valid_dataset.timeout=77"]
    assert found(*words)["validate"].seconds == 77, "they are played at the same time"
    assert found(*words, "domains.airline.valid_dataset.timeout=99")["validate"].seconds == 99
    both = ["domains.airline.valid_dataset.timeout=null", "rollout.collect_timeout=500"]
    assert found(*words, *both)["validate"].seconds == 577


def test_the_page_prints_the_table() -> None:
    section = PAGE.partition("## Deadlines")[2].partition("\n## ")[0]
    for name, deadline in found().items():
        row = next((line for line in section.splitlines() if line.startswith(f"| {name} |")), "")
        assert deadline.keys in row and deadline.then in row, f"| {name} | {deadline.keys} | {deadline.then} |"
