"""B10: a validation has sampling parameters of its own, also temperature 0, whatever training samples with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tau2_lightning.config.environment import GenerationConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.evaluation.evaluation import Evaluation
from tau2_lightning.run.compose import load_config
from tests.fake_service import FakeService
from tests.jobs import Job, run_job, small_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


@pytest.fixture
def job(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    def run(*words: str) -> FakeService:
        own = [
            "domain=mock", "train_dataset.batches_per_epoch=1", "trainer.max_epochs=1", "valid_dataset.num_trials=1",
            "~callbacks.results",
        ]  # fmt: skip
        return run_job(policy, tmp_path, monkeypatch, *own, *words)

    return run


def test_b10_training_at_temperature_0_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gconfig\.temperature=0: .*greater than 0. See --help gconfig\.temperature"):
        load_config(["gconfig.temperature=0"])
    help_text = GenerationConfig.model_fields["temperature"].description
    assert help_text is not None and "valid_dataset.temperature" in help_text


def test_b10_a_validation_may_be_greedy(job: Job, tmp_path: Path) -> None:
    service: FakeService = job("valid_dataset.temperature=0", "valid_dataset.top_p=0.9")
    assert service.sampling == {"temperature": 0.0, "top_p": 0.9}
    after = json.loads((tmp_path / "e" / "t" / "report.json").read_text())["evaluations"]["after"]
    assert after["greedy"] and after["sampling"] == {"temperature": 0.0, "top_p": 0.9}
    assert any(name.startswith("eval/mock/base-greedy/") or "-greedy/" in name for name in after["metrics"])


def test_b10_by_default_it_samples_as_training_does(job: Job, tmp_path: Path) -> None:
    service: FakeService = job()
    assert service.sampling == {}
    after = json.loads((tmp_path / "e" / "t" / "report.json").read_text())["evaluations"]["after"]
    assert not after["greedy"] and after["sampling"] == {}


@pytest.mark.parametrize(("sampling", "greedy"), [({}, False), ({"temperature": 0.0}, True), ({"top_p": 0.5}, False)])
def test_b10_an_evaluation_knows_whether_it_was_greedy(sampling: dict[str, float], greedy: bool) -> None:
    made = Evaluation.of("mock", "base", 1, [], {}, load_config(["domain=mock"], check=False), sampling=sampling)
    assert made.greedy is greedy
