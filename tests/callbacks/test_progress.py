"""The screen shows what a reward alone hides: transfers, signal, faults, time left, and how pass^1 has changed."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from tau2_lightning.callbacks.live import LiveView
from tau2_lightning.callbacks.progress import RunProgress, playing
from tau2_lightning.callbacks.standing import Standing, duration, memory_in_words
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.rollout.collect.collector import Collection
from tau2_lightning.rollout.collect.progress import Progress
from tau2_lightning.telemetry.memory import PeakMemory
from tau2_lightning.telemetry.phases import PhaseClock
from tau2_lightning.telemetry.step_metrics import rollout_metrics
from tau2_lightning.trajectory import EpisodeOutcome, Group, Rollout

FAULTS = {"dispatcher/errored/all": 3.0, "dispatcher/errored/engine:crash": 2.0, "dispatcher/errored/user:timeout": 1.0}


def rollout(sample: int, transferred: bool) -> Rollout:
    outcome = EpisodeOutcome("t", 0.0, "agent_stop", 2, 2, 0, transferred, False, "none")
    return Rollout("t", "0", sample, 0.0, (), outcome, 1.0)


def metrics_of_a_batch() -> dict[str, float]:
    group = Group("0", "t", tuple(rollout(i, transferred=i == 0) for i in range(4)), Counter())
    return rollout_metrics(Collection((group,)), 1.0, Counter())


def validated(value: float) -> dict[str, Any]:
    name = "eval/mock/test/pass^1"
    return {"metrics": {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}}


class Seen:
    """A trainer and a module for the callback, which change from step to step."""

    def __init__(self, **metrics: float) -> None:
        service = SimpleNamespace(progress=Progress("rollout", started=6, finished=4, total=8), waits="")
        data = SimpleNamespace(clock=PhaseClock(), rollouts=SimpleNamespace(service=service))
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        self.trainer: Any = SimpleNamespace(is_global_zero=True, datamodule=data, strategy=strategy)
        self.module: Any = SimpleNamespace(
            last_metrics=metrics, weights_version=0, planned_batches=6.0, last_evaluation={}
        )

    def step(self, callback: RunProgress, **metrics: float) -> None:
        self.module.weights_version += 1
        self.module.last_metrics = metrics
        callback.on_train_batch_end(self.trainer, self.module, None, None, 0)

    def validate(self, callback: RunProgress, value: float) -> None:
        self.module.last_evaluation = validated(value)
        callback.on_validation_end(self.trainer, self.module)


def test_a_step_shows_the_transfer_rate_of_its_episodes() -> None:
    out = io.StringIO()
    trainer: Any = SimpleNamespace(is_global_zero=True)
    module: Any = SimpleNamespace(last_metrics=metrics_of_a_batch(), weights_version=4, planned_batches=6.0)
    callback = RunProgress("plain", Console(file=out))
    callback.on_train_batch_end(trainer, module, None, None, 0)
    assert "step 4/6 " in out.getvalue() and "transfer 0.25" in out.getvalue() and "signal 0.00 of 1" in out.getvalue()
    module.planned_batches = math.inf
    callback.on_train_batch_end(trainer, module, None, None, 0)
    assert "step 4  " in out.getvalue().splitlines()[1]


def test_the_live_line_shows_transfers_and_exclusions_while_episodes_run() -> None:
    progress = Progress("validate", started=6, finished=4, total=8, reward_sum=1.0, transfers=3, excluded=1)
    data: Any = SimpleNamespace(rollouts=SimpleNamespace(service=SimpleNamespace(progress=progress, waits="")))
    assert playing(data) == (4, 8, "4/8 episodes  reward 0.25  transfer 0.75  excluded 1")
    data.rollouts.service = None
    assert playing(data) == (0, None, "starting")


def test_plain_lines_are_ascii_one_for_each_step_and_validation() -> None:
    out, seen = io.StringIO(), Seen()
    callback = RunProgress("plain", Console(file=out, width=40))
    seen.validate(callback, 0.25)
    seen.step(callback, **{"reward/mean": 0.5, "batch/staleness/mean": 0.5, "batch/staleness/max": 2.0, **FAULTS})
    seen.step(callback, **{"reward/mean": 0.75, "dispatcher/errored/engine:crash": 1.0})
    seen.validate(callback, 0.5)
    lines = out.getvalue().splitlines()
    assert out.getvalue().isascii() and len(lines) == 4, "a narrow screen breaks none of them"
    assert lines[0] == "validated after step 0: pass^1 0.250 [0.150, 0.350]"
    assert "staleness 0.5 (max 2)" in lines[1] and "excluded 3 (engine:crash 2, user:timeout 1)" in lines[1]
    assert "excluded 4 (engine:crash 3, user:timeout 1)" in lines[2], "of the whole run"
    assert lines[3] == "validated after step 2: pass^1 0.500 [0.400, 0.600], +0.250 since the start"
    seen.validate(callback, 0.3)
    assert out.getvalue().splitlines()[-1].endswith("+0.050 since the start, best 0.500 after step 2")


def test_the_time_left_follows_the_newest_steps() -> None:
    now = [100.0]
    standing = Standing(now=lambda: now[0])
    assert standing.left == ""
    standing.begin(2, 12)
    now[0] += 30
    standing.batch(3, 12, {})
    now[0] += 50  # with a validation
    standing.batch(4, 12, {})
    assert standing.seconds_left == 8 * 40 and standing.left == "ETA 5 min"
    now[0] += 20
    assert standing.seconds_left == 300, "it runs on between steps"
    standing.batch(12, 12, {})
    assert standing.left == ""
    standing.batch(13, math.inf, {})
    assert standing.left == "" and standing.steps == "13"
    assert [duration(s) for s in (5, 59.9, 61, 4980, 200_000)] == ["5 s", "60 s", "1 min", "1 h 23 min", "2 d 7 h"]


def frame(view: LiveView) -> str:
    view.console.print(view.frame())
    file: Any = view.console.file
    return str(file.getvalue())


def test_the_live_view_shows_everything_that_is_asked_for() -> None:
    standing = Standing(now=lambda: 0.0)
    standing.begin(0, 100)
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    view = LiveView(
        console, "e/t: training", standing, lambda: (52, 128, "52/128 episodes"), lambda: "rollout, for 9 s"
    )
    assert "step 0/100   rollout, for 9 s" in frame(view) and "52/128 episodes" in frame(view)
    for step in range(1, 13):
        standing.batch(step, 100, metrics_of_a_batch() | {"reward/mean": step / 12, "frac_reward_zero_std": 0.38})
    standing.batch(12, 100, dict(standing.newest) | {"batch/staleness/mean": 0.4, "batch/staleness/max": 2, **FAULTS})
    for step, value in ((0, 0.19), (10, 0.31)):
        standing.scores.add(step, validated(value)["metrics"])
    with PeakMemory(every=3600.0):
        shown = frame(view)
    for text in (
        "step 12/100", "▁▂▂▃▄", "1.000 (first 0.083)", "0.310 [0.210, 0.410], +0.120 since the start",
        "0.62 of 1 groups   transfers 0.25   staleness 0.4 (max 2)", "0 sampled",
        "3 (engine:crash 2, user:timeout 1)", "GiB (peak",
    ):  # fmt: skip
        assert text in shown, text
    labels = [line.strip("│ ").split("  ")[0] for line in shown.splitlines()[-9:-1]]
    assert labels[1:] == ["episodes", "reward", "pass^1", "signal", "tokens/s", "excluded", "memory"], labels


def test_a_terminal_gets_the_view_and_text_above_it_and_a_pipe_gets_lines() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system=None)
    callback, seen = RunProgress("auto", console), Seen()
    assert callback.style == "rich" and RunProgress("auto", Console(file=io.StringIO())).style == "plain"
    callback.setup(seen.trainer, seen.module, "fit")
    callback.on_train_start(seen.trainer, seen.module)
    seen.step(callback, **{"reward/mean": 0.5})
    callback.teardown(seen.trainer, seen.module, "fit")
    text = file.getvalue()
    assert "training" in text and "step 1/6" in text and "4/8 episodes" in text
    assert callback._view is None


def test_off_shows_nothing() -> None:
    file, seen = io.StringIO(), Seen()
    callback = RunProgress("off", Console(file=file))
    callback.setup(seen.trainer, seen.module, "fit")
    seen.step(callback, **{"reward/mean": 0.5})
    seen.validate(callback, 0.5)
    callback.teardown(seen.trainer, seen.module, "fit")
    assert file.getvalue() == ""


def test_a_terminal_without_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80, force_terminal=True, color_system=None)
    standing = Standing(rewards=[0.1, 0.9])
    view = LiveView(console, "t", standing, lambda: (0, None, "starting"), lambda: "idle")
    console.print(view.frame())
    console.file.flush()
    assert b"_%" in raw.getvalue() or b"_#" in raw.getvalue()


@pytest.fixture
def resumed(tmp_path: Path) -> RunFolder:
    """The folder of a run that goes on after two of the three batches that it has recorded."""
    (tmp_path / "metrics").mkdir()
    score = "eval/mock/test/pass^1"
    steps = ({"step": n, "loss/mean": 1, "reward/mean": 0.1 * n, **FAULTS} for n in range(3))
    rows: list[dict[str, float]] = [{"step": 0, score: 0.2}, *steps]
    with (tmp_path / "metrics" / "metrics.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, sorted(set().union(*rows)))
        writer.writeheader()
        writer.writerows(rows)
    return RunFolder(tmp_path, start=2, batches_done=2)


def test_a_resumed_run_goes_on_with_what_is_recorded(resumed: RunFolder) -> None:
    callback = RunProgress("plain", Console(file=io.StringIO()), resumed)
    standing = callback.standing
    assert standing.rewards == [0.0, 0.1] and standing.step == 2, "the third batch is made again"
    assert standing.excluded == {"engine:crash": 4, "user:timeout": 2}
    seen = Seen()
    seen.module.weights_version = 2
    seen.validate(callback, 0.5)
    assert "+0.300 since the start" in standing.score
    assert RunProgress("off", None, resumed).standing.rewards == []


def test_the_memory_of_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (30 * 2**30, 80 * 2**30))
    assert memory_in_words(torch.device("cuda", 1)) == "cuda:1 50.0 of 80.0 GiB"
    assert memory_in_words(torch.device("cpu")) == "" == memory_in_words()
