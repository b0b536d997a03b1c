"""`sft data=results.json min_reward=1`: the successful simulations of tau2's results files, and nothing held out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tau2_lightning import sft
from tau2_lightning.environment import load_tasks, write_results
from tau2_lightning.environment.demonstrations import demonstrate
from tau2_lightning.environment.settings import EnvironmentSettings, UserSettings
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.compose import load_config
from tau2_lightning.trajectory import EpisodeOutcome
from tau2_lightning.warm_start.dialogues import training_dialogues
from tau2_lightning.warm_start.encoding import session_rows
from tests.cases.templated import GOLD, SETTINGS, TASK, rig_of, solo_episode
from tests.jobs import small_policy
from tests.rollout.proxy.fixtures import template

MOCK = EnvironmentSettings("mock", user=UserSettings("scripted"))


def outcome(task: Any, simulation: Any) -> EpisodeOutcome:
    reward = simulation["reward_info"]["reward"]
    return EpisodeOutcome(
        task_id=task.task_id, reward=reward, termination_reason="user_stop", turns=1, tool_calls=0, tool_errors=0,
        transferred=False, transfer_expected=False, user="scripted", mistakes={}, reward_breakdown={}, actions=(),
        simulation=simulation, user_faults={},
    )  # fmt: skip


def played(split: str, trials: int, skip: float = 0.5, settings: EnvironmentSettings = MOCK) -> list[EpisodeOutcome]:
    rng = random.Random(1)
    tasks = load_tasks(settings.domain, split, solo_mode=settings.solo_mode)
    return [outcome(task, demonstrate(settings, task, rng, skip, {})[1]) for task in tasks for _ in range(trials)]


def results(path: Path, split: str = "train", trials: int = 4, **more: Any) -> Path:
    return write_results(path, played(split, trials, **more), MOCK, agent="m", num_trials=trials)


def chosen(data: str, *words: str) -> tuple[list[Any], dict[str, Any]]:
    config = load_config(
        ["domain=mock", "econfig.user=scripted", f"warm_start.data={data}", *words], check=False
    )  # fmt: skip
    return training_dialogues(config, Console(quiet=True))


def test_successes_are_taken_once_and_everything_else_is_counted(tmp_path: Path) -> None:
    path = results(tmp_path / "results" / "a.json")
    runs = json.loads(path.read_text())["simulations"]
    won = [run for run in runs if run["reward_info"]["reward"] == 1.0]
    dialogues, facts = chosen(str(path))
    assert 0 < len(dialogues) < len(won) < len(runs), "the check needs failures and repetitions"
    assert facts["simulations"] == len(runs) and facts["taken"] == len(dialogues)
    assert facts["left_out"] == {
        "with a reward below 1": len(runs) - len(won), "said before, word for word": len(won) - len(dialogues),
    }  # fmt: skip
    assert {dialogue.task for dialogue in dialogues} <= {task.task_id for task in load_tasks("mock", "train")}
    every, facts = chosen(str(path), "warm_start.min_reward=0")
    assert len(every) > len(dialogues) and "with a reward below 1" not in facts["left_out"]


def test_several_files_a_folder_and_the_folder_of_a_run(tmp_path: Path) -> None:
    one, two = results(tmp_path / "results" / "a.json"), results(tmp_path / "results" / "b.json", skip=0.0)
    once = chosen(str(one))[0]
    both, facts = chosen(f"[{one},{two},{one}]")
    assert len(both) >= len(once) and facts["data"] == [str(one), str(two)]
    for folder in (tmp_path, tmp_path / "results"):
        assert [d.messages for d in chosen(str(folder))[0]] == [d.messages for d in both]
    talk = tmp_path / "results" / "talk.jsonl"
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    talk.write_text(json.dumps({"messages": said}))
    assert len(chosen(str(tmp_path))[0]) == len(both) + 1


def test_upstreams_folder_form_is_read(tmp_path: Path) -> None:
    whole = results(tmp_path / "whole.json")
    content = json.loads(whole.read_text())
    apart = tmp_path / "run" / "simulations"
    apart.mkdir(parents=True)
    for number, run in enumerate(content.pop("simulations")):
        (apart / f"{number:03d}.json").write_text(json.dumps(run))
    (tmp_path / "run" / "results.json").write_text(json.dumps(content))
    assert [d.messages for d in chosen(str(tmp_path / "run"))[0]] == [d.messages for d in chosen(str(whole))[0]]


def test_held_out_tasks_are_not_learned_unless_stated(tmp_path: Path) -> None:
    path = results(tmp_path / "test.json", "test", skip=0.0)
    with pytest.raises(ConfigError) as refused:
        chosen(str(path))
    told = str(refused.value)
    assert "of tasks held out for scores (valid_dataset.split=test, not in train_dataset.split=train)" in told
    assert "valid_dataset.split=train" in told and "accept_held_out_tasks=true" in told
    assert chosen(str(path), "warm_start.accept_held_out_tasks=true")[0]
    assert chosen(str(path), "train_dataset.split=test")[0], "what is trained on is stated, too"
    mixed = results(tmp_path / "base.json", "base", skip=0.0)
    dialogues, facts = chosen(str(mixed))
    assert {dialogue.task for dialogue in dialogues} == {task.task_id for task in load_tasks("mock", "train")}
    assert any(reason.startswith("of tasks held out") for reason in facts["left_out"])
    _, facts = chosen(str(mixed), "valid_dataset.split=train")
    assert "of tasks that are not in train_dataset.split=train" in facts["left_out"]


def test_other_domains_modes_and_files_are_refused(tmp_path: Path) -> None:
    path = results(tmp_path / "a.json", trials=1)
    with pytest.raises(ConfigError, match=r"is of the domain mock, not retail\. Set domain=mock"):
        training_dialogues(load_config(["domain=retail", f"warm_start.data={path}"], check=False), Console(quiet=True))
    config = load_config(["domain=mock", "econfig.solo_mode=true", f"warm_start.data={path}"], check=False)
    with pytest.raises(ConfigError, match=r"holds dialogues with a user, not solo mode"):
        training_dialogues(config, Console(quiet=True))
    content = json.loads(path.read_text())
    for wrong, told in (
        ("{", "is no JSON"),
        ('{"a": 1}', "holds neither tau2's results nor dialogues"),
        (json.dumps(content | {"simulations": [{"reward_info": {"reward": 1.0}}]}), "simulation 1 is malformed"),
        (json.dumps(content | {"simulations": []}), "of 0 simulations none is left"),
    ):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(ConfigError, match=told):
            chosen(str(tmp_path / "wrong.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="the folder holds no results"):
        chosen(str(tmp_path / "empty"))


def test_another_policy_text_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results(tmp_path / "a.json", trials=1, skip=0.0)
    content = json.loads(path.read_text())
    content["info"]["environment_info"]["policy"] = "Another."
    path.write_text(json.dumps(content))
    config = load_config(["domain=mock", "econfig.user=scripted", f"warm_start.data={path}"], check=False)
    training_dialogues(config, Console(stderr=True, width=400))
    assert "a.json: played under another policy text" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["qwen3", "tiny"])
async def test_the_rows_are_those_of_the_rollout_token_by_token(kind: str, tmp_path: Path) -> None:
    """An episode through the proxy, written to a results file and read again, trains the tokens that were sampled."""
    async with rig_of(template(kind)) as rig:
        said = [f"<tool_call>\n{json.dumps({'name': n, 'arguments': a})}\n</tool_call>" for n, a in GOLD]
        result, session = await solo_episode(rig, said)
        assert result["reward"] == 1.0
        path = write_results(tmp_path / "r.json", [result["outcome"]], SETTINGS, agent="m", num_trials=1)
        words = ["domain=mock", "econfig.solo_mode=true", f"warm_start.data={path}", "train_dataset.split=base"]
        (dialogue,), _ = training_dialogues(load_config(words, check=False), Console(quiet=True))
        assert dialogue.task == TASK
        (row,) = session_rows(rig.format, dialogue, "keep")
        (sampled,) = rig.store.export(session.session_id)
        assert row.token_ids.tolist() == sampled.token_ids.tolist()


def test_rejection_sampling_from_a_validation_to_a_better_policy(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command as a user types it, on the folder of a run: its words need no prefix."""
    results(tmp_path / "run" / "results" / "01_mock_train_version0.json", skip=0.3)
    policy = small_policy(tmp_path_factory)
    words = [
        f"actor.path={policy}", "actor=tiny", "domain=mock", "econfig.user=scripted", f"data={tmp_path / 'run'}",
        "min_reward=1", "steps=4", "tokens_per_step=6000", "max_tokens=4000", "precision=fp32", "valid_share=0.3",
        f"cache_dir={tmp_path}", "gconfig.max_tokens=4096", "trainer.accelerator=cpu",
    ]  # fmt: skip
    assert sft.main(words) == 0
    told = capsys.readouterr()
    made = Path(told.out.strip().splitlines()[-1])
    facts = json.loads((made / "warm_start.json").read_text())
    assert "simulations are learned from; left out:" in told.err
    assert facts["steps"] == 4 and facts["held_out_dialogues"] >= 1 and facts["sft/valid_loss"] > 0
    assert facts["taken"] == facts["dialogues"] + facts["held_out_dialogues"] + facts["dropped_as_too_long"]
    assert sft.main([*words, "min_reward=2"]) == 2
    assert "none is left to learn from" in capsys.readouterr().err
    assert sft.main([*words, "min_rewards=2"]) == 2
