"""The examples of docs/python.md: as printed, with a small policy and a service without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.run import prepared
from tau2_lightning.run.compose import load_config
from tests.fake_service import FakeService, group
from tests.jobs import own_words, small_policy

from .pages import ROOT, examples

PAGE = "docs/python.md"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


@pytest.fixture
def service(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeService:
    """Replaces the engine of every run that the examples prepare; what they write goes to ``tmp_path``."""
    made = FakeService([group(0, [1.0, 0.0, 0.0, 1.0])], [group(1, [0.0, 1.0, 0.0, 1.0])])
    small = [*own_words(policy, tmp_path), f"cache_dir={tmp_path}/cache", "~callbacks.results", "valid_dataset.limit=2"]
    small.append("train_dataset.batches_per_epoch=2")
    monkeypatch.setattr(prepared, "load_config", lambda words: load_config([*words, *small]))
    monkeypatch.setattr("tau2_lightning.rank_zero.RolloutService", lambda *_, **__: made)
    monkeypatch.setattr("tau2_lightning.run.policy.check_prompts", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return made


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, PAGE, "exec", dont_inherit=True), names)  # our own text
    return names


def test_a_trainer_of_ones_own(service: FakeService, tmp_path: Path) -> None:
    names = run(examples(PAGE)[0], {})
    assert service.published == [1, 2] and service.closed and service.evaluated == 3
    assert (tmp_path / "e/t/report.html").is_file() and (tmp_path / "e/t/checkpoints/step2.ckpt").is_dir()
    mine = (tmp_path / "mine/lightning_logs/version_0/metrics.csv").read_text()
    assert "reward/mean" in mine.splitlines()[0] and names["module"].weights_version == 2


def test_a_run_goes_on(service: FakeService) -> None:
    first, again, *_ = examples(PAGE)
    names = run(again, run(first, {}))
    assert names["trainer"].lightning_module.weights_version == 4
    assert service.published == [1, 2, 2, 3, 4], "the engine gets the checkpoint's weights first"


def test_part_by_part(service: FakeService) -> None:
    first, _, second, _ = examples(PAGE)
    imports = first.split("with ")[0]
    names = run(second, run(imports, {}))
    assert float(names["trainer"].callback_metrics["rows"]) == 4.0 and service.closed


def test_a_module_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(examples(PAGE)[3], {})
    assert float(names["trainer"].callback_metrics["loss"]) < 2.0, "from 3.5 nats of 32 tokens"
    made = names["Recurrent"].from_pretrained(tmp_path / "counter")
    own = dict(names["counter"].model.state_dict())
    assert all((value == own[name]).all() for name, value in made.state_dict().items())


def test_every_public_name_is_described() -> None:
    import tau2_lightning

    text = (ROOT / PAGE).read_text()
    assert not [name for name in tau2_lightning.__all__ if name not in text]
