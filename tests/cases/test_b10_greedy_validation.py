"""B10: a validation has its own sampling parameters, also temperature 0, independent of training's."""

from __future__ import annotations

import json
from functools import partial
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
    return partial(
        run_job, policy, tmp_path, monkeypatch,
        "domain=mock", "train_dataset.batches_per_epoch=1", "trainer.max_epochs=1", "valid_dataset.num_trials=1",
        "~callbacks.results",
    )  # fmt: skip


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


def test_b10_greedy_is_a_word_of_its_own(job: Job, tmp_path: Path) -> None:
    service: FakeService = job("valid_dataset.greedy=true")
    assert service.sampling == {"temperature": 0.0}
    after = json.loads((tmp_path / "e" / "t" / "report.json").read_text())["evaluations"]["after"]
    assert after["greedy"] and any("-greedy/" in name for name in after["metrics"])


def test_b10_a_validation_may_have_a_time_limit(job: Job) -> None:
    assert job("valid_dataset.timeout=7.5").timeout == 7.5
    assert job("trial_name=other").timeout is None


def test_b10_greedy_at_a_temperature_is_refused() -> None:
    words = ["domain=mock", "valid_dataset.greedy=true"]
    with pytest.raises(ConfigError, match=r"valid_dataset\.temperature=0\.7: is not greedy"):
        load_config([*words, "valid_dataset.temperature=0.7"])
    assert load_config([*words, "valid_dataset.temperature=0"]).valid_dataset.greedy
    mixed = ["domain=[telecom,retail]", "econfig.user=scripted", "domains.telecom.econfig.solo_mode=true"]
    with pytest.raises(ConfigError, match=r"domains\.retail\.valid_dataset\.temperature=0\.5"):
        own = ["domains.retail.valid_dataset.greedy=true", "domains.retail.valid_dataset.temperature=0.5"]
        load_config([*mixed, *own])


def test_b10_leaderboard_has_tau2s_own_defaults() -> None:
    from tau2 import config as tau2

    from tau2_lightning.environment.settings import environment_settings
    from tau2_lightning.evaluation.plan import sampling_of

    words = ["experiment=leaderboard", "domain=airline"]
    config = load_config(words, check=False)
    settings = environment_settings(config.econfig)
    assert sampling_of(config.valid_dataset) == tau2.DEFAULT_LLM_ARGS_AGENT
    assert settings.user.llm_args == tau2.DEFAULT_LLM_ARGS_USER
    assert (settings.max_steps, settings.max_errors) == (tau2.DEFAULT_MAX_STEPS, tau2.DEFAULT_MAX_ERRORS)
    assert (config.seed, config.mode, settings.policy) == (tau2.DEFAULT_SEED, "validate", "full")
    assert (config.valid_dataset.split, config.valid_dataset.num_trials) == ("base", 4) and not settings.solo_mode


def test_a_user_that_is_a_model_has_tau2s_temperature_unless_told_otherwise() -> None:
    from tau2_lightning.environment.settings import environment_settings

    def arguments(*words: str) -> object:
        config = load_config(["domain=airline", "econfig.user=llm", "econfig.user_llm=m", *words], check=False)
        return environment_settings(config.econfig).user.llm_args

    assert arguments() == {"temperature": 0.0}
    assert arguments("econfig.user_llm_args={top_p: 0.5}") == {"top_p": 0.5}
    assert arguments("econfig.user_llm_args={}") == {}
