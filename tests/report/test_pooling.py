"""The report over several seeds: which runs are pooled, their mean curve, the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tau2_lightning.report.__main__ import main
from tau2_lightning.report.pooling import mean_series, variants
from tau2_lightning.report.runs import find_runs, read_run
from tau2_lightning.report.series import Series
from tests.report.conftest import Opened
from tests.report.made_run import made_run
from tests.report.test_page import index_of

TRIALS = {"before": 2, "after": 6}


def job(root: Path, seed: int, *, up: float = 0.05, ended: bool = True, **settings: Any) -> Path:
    """A run folder with curves, a configuration and, if it has ended, a report."""
    made_run(root, steps=2, up=up)
    (root / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "trial_name": root.name, **settings}))
    evaluations = {
        name: {
            "domain": "mock", "stamp": {"tau2": "26.3"}, "summary": {"excluded": {}},
            "trials": {str(n): [2 * (n < solved + seed), 2] for n in range(10)},
        }
        for name, solved in TRIALS.items()
    }  # fmt: skip
    if ended:
        (root / "report.json").write_text(json.dumps({"evaluations": evaluations, "seconds": {}}))
    return root


def test_the_mean_has_an_interval_at_the_steps_of_two_runs() -> None:
    one, other = Series([0, 1, 2], [0.0, 1.0, 5.0]), Series([0, 1], [1.0, 1.0])
    mean = mean_series([{"a": one, "b": one}, {"a": other}])
    assert list(mean) == ["a"] and mean["a"].steps == [0, 1] and mean["a"].values == [0.5, 1.0]
    assert mean["a"].band == "interval" and mean["a"].high[0] == pytest.approx(0.5 + 12.7062 * 0.7071068 / 2**0.5, 1e-4)
    assert mean["a"].low[1] == mean["a"].high[1] == 1.0


def test_runs_that_differ_in_nothing_but_their_seed_are_one_variant(tmp_path: Path) -> None:
    for seed in (1, 2):
        job(tmp_path / f"low-{seed}", seed, actor={"lr": 0.1})
        job(tmp_path / f"high-{seed}", seed, actor={"lr": 0.2})
    found = variants([read_run(root, root.name) for root in find_runs([tmp_path])])
    assert {one.label: [run.name for run in one.runs] for one in found} == {
        "actor.lr=0.2": ["high-1", "high-2"], "actor.lr=0.1": ["low-1", "low-2"],
    }  # fmt: skip
    assert found[0].mean().name == "mean of 2 runs: actor.lr=0.2"


def test_the_command_prints_the_table_and_writes_page_and_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for seed in (1, 2, 3):
        job(tmp_path / "sweep" / f"sweep-{seed - 1}", seed, up=0.05 * seed)
    assert main(["--pool", str(tmp_path / "sweep")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "mean over 3 runs, 95% interval over runs" in out and "pass^1 of sweep-2 (seed 3) │ 0.500 │ 0.900" in out
    assert out.index("report.html") < out.index("pass^1"), "the table comes last"
    (pool,) = json.loads((tmp_path / "sweep" / "pooled.json").read_text())
    assert pool["domains"]["mock"]["pass_hat"]["pass^1"]["before"]["values"] == [0.3, 0.4, 0.5]
    index = index_of(tmp_path / "sweep" / "report.html")
    assert [run["name"] for run in index["runs"]] == ["mean of 3 runs", "sweep-0", "sweep-1", "sweep-2"]
    assert index["pools"] == [pool] and index["runs"][0]["series"]["reward/mean"]["y"][1] == pytest.approx(0.4)
    assert set(index["episodes"]["run"]) == {1, 2, 3}, "the mean has no episodes, and takes no room from the runs"


def test_without_the_option_nothing_is_pooled(tmp_path: Path) -> None:
    for seed in (1, 2):
        job(tmp_path / f"s-{seed}", seed, ended=False)
    assert main([str(tmp_path)]) == 0
    index = index_of(tmp_path / "report.html")
    assert [run["name"] for run in index["runs"]] == ["s-1", "s-2"] and index["pools"] == []
    assert not (tmp_path / "pooled.json").exists()


def test_an_experiment_also_stands_for_the_runs_of_its_sweeps(tmp_path: Path) -> None:
    made_run(tmp_path / "e" / "alone", steps=1)
    for number in (0, 1):
        made_run(tmp_path / "e" / "sweep" / f"sweep-{number}", steps=1)
    assert [root.name for root in find_runs([tmp_path / "e"])] == ["alone", "sweep-0", "sweep-1"]
    assert len(find_runs([tmp_path / "e" / "sweep"])) == 2


@pytest.mark.browser
def test_the_page_shows_the_table_and_the_mean(opened: Opened, tmp_path: Path) -> None:
    runs = [job(tmp_path / f"s-{seed}", seed, up=0.05 * seed) for seed in (1, 2)]
    page = opened(*runs, options=("--pool",))
    assert "mean over 2 of 2 runs" in page.locator("table.pool caption").inner_text()
    assert "pass^1" in page.locator("table.pool tbody").inner_text()
    assert "mean of 2 runs" in page.locator("#runs").inner_text()
    plot = page.locator('[data-metric="reward/mean"] .u-over')
    plot.wait_for()
    page.locator("#tab-timeline").click()
    assert "This run has recorded no times." in page.locator("#view-timeline").inner_text()
