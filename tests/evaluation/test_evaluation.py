"""Keys and table of an evaluation: per domain and split, with the numbers that a mean reward hides."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tau2_lightning.algorithm import GRPO
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.evaluation.evaluation import Evaluation
from tau2_lightning.evaluation.plan import ValidationPlan
from tau2_lightning.evaluation.report import print_report
from tau2_lightning.rollout.collect.validation import PlayedPart
from tau2_lightning.run.compose import load_config
from tau2_lightning.trajectory import EpisodeOutcome, Rollout
from tests.batch.groups import trajectory
from tests.environment.helpers import first_task, play, scripted

GOOD = EpisodeOutcome("a", 1.0, "user_stop", 4, 3, 1, False, False, "openai/user-7b", {"unknown_tool": 1})
HACK = replace(GOOD, reward=0.0, termination_reason="max_steps", transferred=True, mistakes={})


def evaluation() -> Evaluation:
    outcomes = [GOOD, HACK, replace(GOOD, task_id="b"), replace(GOOD, task_id="b")]
    row = trajectory(range(6), [(2, 5)])
    rollouts = [Rollout(o.task_id, "0", i, o.reward, (row,), o, 1.0) for i, o in enumerate(outcomes)]
    config = load_config(["domain=retail"], check=False)
    return Evaluation.of("retail", "test", 2, rollouts, {"user:http_500": 2, "engine:timeout": 1}, config)


def test_numbers_are_per_domain_and_split_and_exclusions_by_cause() -> None:
    scalars = evaluation().scalars()
    assert all(key.startswith("eval/retail/test/") for key in scalars)
    short = {key.removeprefix("eval/retail/test/"): value for key, value in scalars.items()}
    assert (short["pass^1"], short["pass^2"], short["transfer_rate"]) == (0.75, 0.5, 0.25)
    assert short["pass^1_low"] < 0.75 < short["pass^1_high"]
    assert (short["excluded"], short["excluded/user:http_500"], short["excluded/engine:timeout"]) == (3, 2, 1)
    assert (short["terminations/user_stop"], short["terminations/max_steps"], short["mistakes/unknown_tool"]) == (
        3,
        1,
        3,
    )
    assert (short["mean_turns"], short["tool_error_rate"], short["mean_tokens"]) == (4.0, 1 / 3, 3.0)


def test_with_exclusions_pass_1_is_told_three_ways() -> None:
    config = load_config(["domain=retail"], check=False)
    outcomes = [GOOD, HACK, replace(GOOD, task_id="b", user_faults={"invents_ids": 2, "empty_turn": 1})]
    rollouts = [
        Rollout(o.task_id, "0", i, o.reward, (trajectory(range(6), [(2, 5)]),), o) for i, o in enumerate(outcomes)
    ]
    lost = {"user:speaks_as_agent": 3}
    found = Evaluation.of("retail", "test", 2, rollouts, lost, config, tasks=["a", "b", "c"])
    short = {key.removeprefix("eval/retail/test/"): value for key, value in found.scalars().items()}
    # a: 1 of 2; b: 1 of 1, one excluded; c: both excluded.
    assert short["pass^1"] == 0.75
    assert short["pass^1_excluded_as_failures"] == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert short["pass^1_excluded_as_successes"] == pytest.approx((0.5 + 1.0 + 1.0) / 3)
    assert (short["user_faults"], short["user_faults/invents_ids"], short["user_faults/empty_turn"]) == (1, 2, 1)
    rows = dict(found.table_rows())
    assert [rows[f"pass^1, excluded {way}"][:5] for way in ("left out", "as failures", "as successes")] == [
        "0.750", "0.333", "0.833",
    ]  # fmt: skip
    assert rows["user's faults"] == "empty_turn 1, invents_ids 2" and rows["episodes with one"] == "1"
    out = io.StringIO()
    print_report([("before", evaluation()), ("after", found)], {}, run_dir="x", console=Console(file=out, width=160))
    assert "pass^1, excluded as successes" in out.getvalue() and "invents_ids 2" in out.getvalue()
    everything = Evaluation.of("retail", "test", 2, [], lost, config, tasks=["a"])
    assert dict(everything.table_rows())["pass^1, excluded as successes"].startswith("1.000")


def test_without_exclusions_it_is_told_once() -> None:
    config = load_config(["domain=retail"], check=False)
    rollouts = [Rollout("a", "0", i, 1.0, (trajectory(range(6), [(2, 5)]),), GOOD) for i in range(2)]
    found = Evaluation.of("retail", "test", 2, rollouts, {}, config, tasks=["a"])
    assert not [key for key in found.scalars() if "excluded_as" in key]
    assert not [label for label, _ in found.table_rows() if label.startswith("pass^1, excluded")]


def test_of_other_peoples_agents_it_tells_rewards_and_no_more() -> None:
    row = trajectory(range(6), [(2, 5)])
    rollouts = [Rollout("ab"[i // 2], "0", i, float(i > 0), (row,)) for i in range(4)]
    played = Evaluation.of("retail", "test", 2, rollouts, {}, load_config(["domain=retail"], check=False))
    short = {key.removeprefix("eval/retail/test/"): value for key, value in played.scalars().items()}
    assert (short["episodes"], short["mean_reward"], short["mean_tokens"]) == (4, 0.75, 3.0)
    assert (short["pass^1"], short["pass^2"]) == (0.75, 0.5)
    assert not {"transfer_rate", "mean_turns", "pass^1_no_transfer", "tool_error_rate"} & short.keys()
    assert json.dumps(played.payload(), allow_nan=False)
    assert next((k, v[:7]) for k, v in played.table_rows()) == ("pass^1", "0.750 [")


def test_only_the_newest_validation_keeps_its_dialogues(tmp_path: Path) -> None:
    config = load_config(["domain=retail"], check=False)
    data = Tau2DataModule(config, "nowhere", GRPO(), run_dir=tmp_path)
    outcome = replace(GOOD, simulation={"messages": [1] * 100})
    played = [Rollout("a", "0", 0, 1.0, (trajectory(range(6), [(2, 5)]),), outcome)]
    service = SimpleNamespace(evaluate=lambda parts: [PlayedPart(played, Counter())])
    data.rollouts.service = service  # type: ignore[assignment]
    for _ in range(3):
        data.rollouts.evaluate(ValidationPlan("retail", "test", (), 1))
    assert [bool(found.outcomes[0].simulation) for found in data.evaluations] == [False, False, True]
    assert data.evaluations[0].scalars() == data.evaluations[2].scalars()


def test_the_report_names_the_user_and_shows_every_row() -> None:
    out = io.StringIO()
    print_report([("after", evaluation())], {}, run_dir="x", console=Console(file=out, width=160))
    text = " ".join(out.getvalue().split())
    assert "tau2 retail, split test, user: openai/user-7b" in text
    for label in ("pass^1 │ 0.750", "pass^2", "pass^1 without transfer tasks", "transfer rate", "turns │ 4.0"):
        assert label in text
    assert "user:http_500 2, engine:timeout 1" in text and "max_steps 1, user_stop 3" in text
    assert "unknown_tool 3" in text and "sampled tokens an episode │ 3" in text


async def test_a_results_file_names_the_user_that_played_though_the_configuration_did_not(tmp_path: Path) -> None:
    config = load_config(["domain=telecom", "econfig.user_llm_base_url=http://127.0.0.1:9/v1"])
    task = first_task(solo_mode=False)
    dialogue = await play(task, scripted("telecom"), [])
    dialogue.abort("context_length_exceeded")
    outcome = replace(dialogue.outcome(), user="user-7b")
    played = [Rollout(task.task_id, "0", 0, 0.0, (trajectory(range(6), [(2, 5)]),), outcome)]
    Evaluation.of("telecom", "train", 1, played, {}, config).write(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["info"]["user_info"]["llm"] == "user-7b"


def test_the_payload_is_plain_json_also_without_episodes() -> None:
    payload = json.loads(json.dumps(evaluation().payload(), allow_nan=False))
    assert (payload["domain"], payload["split"], payload["summary"]["user"]) == ("retail", "test", "openai/user-7b")
    empty = Evaluation.of("retail", "test", 2, [], {"user:timeout": 4}, load_config(["domain=retail"], check=False))
    assert json.loads(json.dumps(empty.payload(), allow_nan=False))["summary"]["excluded"] == {"user:timeout": 4}
    empty.write(Path("never-written.json"))
    assert not Path("never-written.json").exists()


def test_where_every_episode_is_excluded_no_number_stands_for_none() -> None:
    config = load_config(["domain=retail"], check=False)
    empty = Evaluation.of("retail", "test", 2, [], {"user:stops_early": 4}, config, tasks=["a", "b"])
    known = {"episodes": 0.0, "planned": 4.0, "excluded": 4.0, "excluded/user:stops_early": 4.0}
    found = {name.removeprefix("eval/retail/test/"): value for name, value in empty.scalars().items()}
    bounds = {name: found.pop(name) for name in list(found) if "_excluded_as_" in name}
    assert found == known
    assert bounds["pass^1_excluded_as_failures"] == 0.0 and bounds["pass^1_excluded_as_successes"] == 1.0
    rows = dict(empty.table_rows())
    assert "nan" not in str(rows)
    assert {rows[name] for name in ("pass^1, excluded left out", "turns", "sampled tokens an episode")} == {"-"}
