"""The progress lines show what a reward alone hides: above all how often the agent only transfers to a human."""

from __future__ import annotations

import io
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from tau2_lightning.callbacks.progress import RunProgress, _state
from tau2_lightning.rollout.collect.collector import Collection
from tau2_lightning.rollout.collect.progress import Progress
from tau2_lightning.telemetry.step_metrics import rollout_metrics
from tau2_lightning.trajectory import EpisodeOutcome, Group, Rollout


def rollout(sample: int, transferred: bool) -> Rollout:
    outcome = EpisodeOutcome("t", 0.0, "agent_stop", 2, 2, 0, transferred, False, "none")
    return Rollout("t", "0", sample, 0.0, (), outcome, 1.0)


def test_a_step_shows_the_transfer_rate_of_its_episodes() -> None:
    group = Group("0", "t", tuple(rollout(i, transferred=i == 0) for i in range(4)), Counter())
    metrics = rollout_metrics(Collection((group,)), 1.0, Counter())
    out = io.StringIO()
    trainer: Any = SimpleNamespace(is_global_zero=True)
    module: Any = SimpleNamespace(last_metrics=metrics, weights_version=4, planned_batches=6.0)
    callback = RunProgress("plain", Console(file=out))
    callback.on_train_batch_end(trainer, module, None, None, 0)
    assert "step 4/6 " in out.getvalue() and "transfer 0.25" in out.getvalue()
    module.planned_batches = math.inf
    callback.on_train_batch_end(trainer, module, None, None, 0)
    assert "step 4  " in out.getvalue().splitlines()[1]


def test_the_live_line_shows_transfers_and_exclusions_while_episodes_run() -> None:
    progress = Progress("validate", started=6, finished=4, total=8, reward_sum=1.0, transfers=3, excluded=1)
    data: Any = SimpleNamespace(rollouts=SimpleNamespace(service=SimpleNamespace(progress=progress, waits="")))
    assert _state(data) == (4, 8, "4/8 episodes  reward 0.25  transfer 0.75  excluded 1")
    data.rollouts.service = None
    assert _state(data) == (0, None, "starting")
