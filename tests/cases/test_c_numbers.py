"""Numbers that are not finite: a gradient skips the step, a weight goes nowhere, a metric is not logged."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch

from tau2_lightning.callbacks.health import COLLAPSED, LEAST, TrainingHealth
from tau2_lightning.errors import TrainingDiverged
from tau2_lightning.launch.manifest import damage
from tau2_lightning.module import GRPOModule
from tau2_lightning.run.exit import exit_code
from tau2_lightning.strategy.finite import check_finite
from tau2_lightning.telemetry.finite import WINDOW, SkippedSteps
from tests.cases.runs import Runs

NAN, INF = float("nan"), float("inf")
LONGER = ("train_dataset.batches_per_epoch=6", "trainer.max_epochs=1", "trainer.checkpoint_every_n_steps=1")


def rows(runs: Runs) -> list[dict[str, str]]:
    with (runs.folder / "metrics" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def is_finite(cell: str | None) -> bool:
    return not cell or cell.lower().strip("+-") not in ("nan", "inf", "infinity")


def planted(monkeypatch: pytest.MonkeyPatch, at: Callable[[int], bool], value: float) -> None:
    """Multiply the loss by ``value`` at the weights versions that ``at`` holds for: its gradient is not finite then."""
    right = GRPOModule._loss

    def loss(module: GRPOModule, outputs: Any, microbatch: Any) -> Any:
        found, metrics = right(module, outputs, microbatch)
        return (found * value, metrics) if at(module.weights_version) else (found, metrics)

    monkeypatch.setattr(GRPOModule, "_loss", loss)


class Weights:
    """Keeps the weights that each sync brings to the engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[int, dict[str, torch.Tensor]] = {}

        def take(service: Any, tensors: dict[str, torch.Tensor]) -> None:
            self.of[service.published[-1]] = {name: tensor.clone() for name, tensor in tensors.items()}

        monkeypatch.setattr("tests.fake_service.FakeService.take", take)

    def equal(self, one: int, other: int) -> bool:
        return all(torch.equal(self.of[one][name], self.of[other][name]) for name in self.of[one])


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_gradient_that_is_not_finite_skips_the_step_and_is_counted(
    value: float, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, lambda version: version == 2, value)
    weights = Weights(monkeypatch)
    assert runs(*LONGER).published == [1, 2, 3, 4, 5, 6]
    assert weights.equal(2, 3), "the step was not made"
    assert not weights.equal(1, 2) and not weights.equal(3, 4), "training goes on"
    assert all(torch.isfinite(tensor).all() for tensor in weights.of[6].values())
    told = capsys.readouterr().err
    left_out = "this optimizer step is left out (1 of 3)"
    assert told.count(left_out) == 2 and told.count("warning: the gradient's norm is ") == 1, "once, and in the list"
    steps = [row for row in rows(runs) if row.get("optim/skipped_steps")]
    assert [float(row["optim/skipped_steps"]) for row in steps] == [0, 0, 1, 0, 0, 0]
    assert all(is_finite(cell) for row in rows(runs) for cell in row.values())


def test_too_many_skipped_steps_end_the_run_with_what_was_learnt_saved(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, lambda version: version >= 2, NAN)
    words = ("train_dataset.batches_per_epoch=9", "trainer.max_epochs=1", "trainer.max_skipped_steps=2")
    assert exit_code(lambda: bool(runs(*words))) == 1
    told = capsys.readouterr().err
    assert "TrainingDiverged" in told and "3 of the newest 5 optimizer steps" in told
    assert "trainer.max_skipped_steps=2" in told and "ckpt_path=last" in told
    (kept,) = runs.kept()
    assert damage(runs.checkpoints / kept) is None
    monkeypatch.undo()
    again = Runs(runs.policy, runs.root, monkeypatch)("ckpt_path=last", *words)
    assert again.published[0] == 4 and again.published[-1] == 9, "two skipped batches count as batches"


def test_weights_that_are_not_finite_reach_no_engine_no_checkpoint_and_no_folder(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As faulty memory would plant it: after the step of version 2, past every check of gradients."""
    right = GRPOModule.training_step

    def step(module: GRPOModule, batch: Any, batch_idx: int) -> None:
        right(module, batch, batch_idx)
        if module.weights_version == 3 and module.policy is not None:
            with torch.no_grad():
                next(module.policy.parameters()).view(-1)[5] = NAN

    monkeypatch.setattr(GRPOModule, "training_step", step)
    weights = Weights(monkeypatch)
    assert exit_code(lambda: bool(runs(*LONGER))) == 1
    told = capsys.readouterr().err
    assert "TrainingDiverged: not finite: " in told and "embed_tokens" in told
    assert max(weights.of) == 2 and runs.kept() == ["step1.ckpt", "step2.ckpt"]
    assert not (runs.folder / "policy").exists()
    monkeypatch.undo()
    assert Runs(runs.policy, runs.root, monkeypatch)("ckpt_path=last", *LONGER).published == [2, 3, 4, 5, 6]


def test_weights_are_looked_at_before_a_sync_also_where_nothing_is_saved(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = GRPOModule.training_step

    def step(module: GRPOModule, batch: Any, batch_idx: int) -> None:
        right(module, batch, batch_idx)
        assert module.policy is not None
        with torch.no_grad():
            next(module.policy.parameters()).view(-1)[5] = -INF

    monkeypatch.setattr(GRPOModule, "training_step", step)
    weights = Weights(monkeypatch)
    assert exit_code(lambda: bool(runs("trainer.save_top_k=0"))) == 1
    assert "so bringing the weights to the engines is not done" in capsys.readouterr().err
    assert not weights.of


def test_a_metric_that_is_not_finite_is_not_logged_and_counted(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    right = GRPOModule._loss

    def loss(module: GRPOModule, outputs: Any, microbatch: Any) -> Any:
        found, metrics = right(module, outputs, microbatch)
        if module.weights_version == 1:
            metrics = metrics | {"own": found.detach() * NAN, "entropy": metrics["entropy"] * INF}
        return found, metrics

    monkeypatch.setattr(GRPOModule, "_loss", loss)
    runs(*LONGER)
    steps = [row for row in rows(runs) if row.get("telemetry/nonfinite")]
    assert [float(row["telemetry/nonfinite"]) for row in steps] == [0, 2, 0, 0, 0, 0]
    assert [bool(row["entropy/all/mean"]) for row in steps] == [True, False, True, True, True, True]
    assert all(is_finite(cell) for row in rows(runs) for cell in row.values())


def test_what_any_callback_logs_passes_the_same_place(runs: Runs) -> None:
    runs("+callbacks.own._target_=tests.cases.test_c_numbers.Logs", "trainer.max_epochs=1")
    assert all(is_finite(cell) for row in rows(runs) for cell in row.values())
    assert any(row.get("own/good") for row in rows(runs)) and not any("own/bad" in row for row in rows(runs))


class Logs(L.Callback):
    """Logs a number that is none."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        pl_module.log_dict({"own/good": 1.0, "own/bad": torch.tensor(NAN), "own/worse": -INF}, batch_size=1)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_value_among_many_is_found(value: float, dtype: torch.dtype) -> None:
    weights = {f"w{index}": torch.zeros(7, 9, dtype=dtype) for index in range(4)}
    check_finite([*weights.items(), ("steps", torch.tensor(3)), ("empty", torch.zeros(0))], "saving")
    weights["w2"][3, 4] = value
    with pytest.raises(TrainingDiverged, match=r"not finite: w2; so saving is not done"):
        check_finite(weights.items(), "saving")


def test_skipped_steps_are_forgotten_after_the_window() -> None:
    skips = SkippedSteps(1)
    assert not skips.takes(torch.tensor(NAN), 0)
    assert all(skips.takes(torch.tensor(1.0), version) for version in range(1, WINDOW + 1))
    assert not skips.takes(torch.tensor(INF), WINDOW + 1), "the first is a hundred steps ago"
    assert skips.of(WINDOW + 1) == 1 and skips.of(5) == 0
    with pytest.raises(TrainingDiverged, match="2 of the newest 100"):
        skips.takes(torch.tensor(NAN), WINDOW + 2)


def said(metric: str, values: list[float]) -> list[int]:
    """The batches at which the health callback warns."""
    health = TrainingHealth()
    return [number for number, value in enumerate(values) if health.look({metric: value})]


def test_a_spike_warns_once_for_each_occurrence() -> None:
    steady = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95]
    assert said("optim/grad_norm", [*steady, 1.3, 40.0, 45.0, 42.0, 1.0, 1.1, 60.0, 1.0]) == [7, 12]
    assert said("loss/mean", [0.001, -0.002, 0.003, -0.001, 0.002, -0.004, 0.008, -0.006]) == [], "around zero"
    assert said("loss/mean", [0.001, -0.002, 0.003, -0.001, 0.002, -0.004, 3.0]) == [6]
    assert said("optim/grad_norm", [1.0, 50.0, 1.0]) == [], "nothing to compare with yet"


def test_a_collapsed_entropy_warns_once_until_it_has_recovered() -> None:
    begins = [2.0] * LEAST
    low = 2.0 * COLLAPSED * 0.9
    assert said("entropy/all/mean", [*begins, 1.0, 0.5, low, low, 0.3, low, 1.5, low, low]) == [7, 12]
    assert said("entropy/all/mean", [*begins, *[0.5] * 10]) == []


def test_health_is_said_on_the_screen_of_a_run(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tau2_lightning.callbacks.health.LEAST", 2)
    planted(monkeypatch, lambda version: version == 4, 1e6)
    runs(*LONGER)
    told = capsys.readouterr().err
    assert told.count("warning: step 5: optim/grad_norm is ") == 1 and "the median of the" in told
