"""Faults injected into runs: the run does what docs/reliability.md states, and goes on from what it has saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS, QUICK, Fault
from tests.chaos.inject import inject, undisturbed, without_engine
from tests.chaos.real import REAL_FAULTS, with_engine
from tests.jobs import small_policy
from tests.programs import forked


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


@pytest.fixture(scope="module")
def calm(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without a fault."""
    return undisturbed(without_engine(policy, tmp_path_factory.mktemp("calm"), "nothing", forked))


def marked(fault: Fault) -> object:
    return pytest.param(fault, id=fault.key, marks=() if fault.key in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("fault", [marked(fault) for fault in FAULTS])
def test_the_run_does_what_is_stated(fault: Fault, policy: Path, calm: Path, tmp_path: Path) -> None:
    """Each start is a process of its own, forked; `make chaos` starts them as users do."""
    inject(fault, without_engine(policy, tmp_path, fault.plant, forked), calm)


def test_every_fault_has_a_name_of_its_own_and_a_dozen_are_quick() -> None:
    keys = [fault.key for fault in FAULTS]
    assert len(set(keys)) == len(keys) and len(QUICK) == 12 and set(keys) >= QUICK


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("fault", REAL_FAULTS, ids=[fault.key for fault in REAL_FAULTS])
def test_a_run_with_a_real_engine_does_what_is_stated(fault: Fault, tmp_path: Path) -> None:
    inject(fault, with_engine(tmp_path))
