"""The main job keeps its episodes: the callback under a real Trainer, with a service that has no engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tau2_lightning
from tau2_lightning.rollout_files.names import FOLDER
from tau2_lightning.rollout_files.vocabulary import read_vocabulary
from tau2_lightning.telemetry.timeline import read_timeline
from tests.cases.runs import Runs
from tests.jobs import small_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


@pytest.fixture
def runs(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(policy, tmp_path, monkeypatch)


def test_a_run_keeps_every_episode(runs: Runs) -> None:
    runs("trainer.limit_val_batches=1", "trainer.max_epochs=1")
    found = list(tau2_lightning.read_rollouts(runs.folder))
    trained = [one for one in found if one.kind == "train"]
    assert [one.step for one in trained] == [0] * 4 + [1] * 4
    assert {one.status for one in trained} == {"trained"}
    for one in trained:
        assert one.trained.any() and np.isfinite(one.trainer_logprobs[one.trained]).all()
        assert (one.trainer_logprobs[one.trained] < 0).all() and np.isnan(one.trainer_logprobs[~one.trained]).all()
    assert [one.version for one in trained] == [0] * 4 + [1] * 4
    validated = [one for one in found if one.kind == "validate"]
    assert validated and {one.step for one in validated} >= {0, 2} and all(one.stamp["digest"] for one in validated)
    assert len(read_vocabulary(runs.folder / FOLDER)) > 256
    phases = [span.phase for span in read_timeline(runs.folder)]
    assert {"rollout", "train", "weight sync", "validate"} <= set(phases)


def test_the_trainers_logprobs_are_of_the_token_they_stand_at(runs: Runs) -> None:
    """At version 0 the trainer scores with the weights of the starting policy: scoring the row again gives the same."""
    import torch
    from transformers import AutoModelForCausalLM

    runs("trainer.max_epochs=1")
    one = next(iter(tau2_lightning.read_rollouts(runs.folder, step=0)))
    model = AutoModelForCausalLM.from_pretrained(runs.policy, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(one.tokens.astype(np.int64))[None]).logits[0]
    logprobs = torch.log_softmax(logits.float(), -1)
    for at in np.flatnonzero(one.trained):
        expected = float(logprobs[at - 1, int(one.tokens[at])])
        assert abs(expected - float(one.trainer_logprobs[at])) < 2e-3


def test_no_secret_of_the_configuration_is_in_a_file(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    canaries = [
        "canary-user-key-1",
        "canary-judge-key-2",
        "canary-engine-key-3",
        "canary-header-key-4",
        "canary-env-key-5",
    ]
    monkeypatch.setenv("SOME_API_KEY", canaries[4])
    runs(
        "trainer.max_epochs=1", f"econfig.user_llm_api_key={canaries[0]}", f"econfig.judge_llm_api_key={canaries[1]}",
        f"rollout.engine_api_key={canaries[2]}", f"+econfig.user_llm_args.extra_headers.x-api-key={canaries[3]}",
    )  # fmt: skip
    kept = [path for path in (runs.folder / FOLDER).iterdir() if path.suffix == ".parquet"]
    assert len(kept) >= 4
    for path in kept:
        text = str(list(tau2_lightning.read_rollouts(runs.folder))) + str(path.read_bytes())
        assert not [canary for canary in canaries if canary in text]


def test_nothing_is_kept_where_nobody_wants_it(runs: Runs) -> None:
    runs("trainer.max_epochs=1", "rollout.keep_rollouts=none")
    assert not (runs.folder / FOLDER).exists()


def test_a_resumed_run_continues_its_rollouts(runs: Runs) -> None:
    runs("trainer.max_epochs=1")
    before = [path.read_bytes() for path in sorted((runs.folder / FOLDER).glob("train-*"))]
    runs("ckpt_path=last", "trainer.max_epochs=2")
    files = sorted((runs.folder / FOLDER).glob("train-*"))
    assert [path.name for path in files] == [f"train-00000{step}.parquet" for step in range(4)]
    assert [path.read_bytes() for path in files[:2]] == before
