"""A run on TensorBoard, read back as TensorBoard reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from tau2_lightning.callbacks.dialogues import shown
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.loggers import tensorboard
from tests.report.made_run import episode

SCORE = "eval/mock/test/pass^1"


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    """What a short run has written."""
    root = tmp_path_factory.mktemp("run")
    config = load_config(["domain=mock", "gconfig.n_samples=4", "econfig.user_llm_api_key=sk-hidden-1"], check=False)
    logger: Any = tensorboard(RunFolder(root), config)
    logger.log_hyperparams({"stamp": {"training": {"seed": 1}}})
    logger.log_metrics({"reward/mean": 0.5, SCORE: 0.25}, 0)
    logger.show_dialogues("train", 0, [shown(episode(0, 0, reward=0.0)), shown(episode(0, 1))])
    logger.keep_files("model", "policy", [Path("exports/step2")], aliases=["step2", "best"])
    logger.keep_summary(3, {"best/pass^1": 0.25})
    logger.finalize("success")
    assert "tensorboard --logdir" in logger.where() and str(root / "tensorboard") in logger.where()
    for path in (root / "tensorboard").iterdir():
        assert b"sk-hidden-1" not in path.read_bytes()
    found = EventAccumulator(str(root / "tensorboard"), size_guidance={"tensors": 0})
    found.Reload()
    return found


def test_numbers_and_summaries_are_curves(events: EventAccumulator) -> None:
    assert [(one.step, one.value) for one in events.Scalars("reward/mean")] == [(0, 0.5)]
    assert [(one.step, one.value) for one in events.Scalars("best/pass^1")] == [(3, 0.25)]


def test_dialogues_and_places_of_files_are_texts(events: EventAccumulator) -> None:
    def text(tag: str) -> str:
        return bytes(events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0]).decode()

    assert "check_line" in text("dialogues/train/0") and "reward 0.0" in text("dialogues/train/0")
    assert "reward 1.0" in text("dialogues/train/1")
    assert "step2, best" in text("files/model/policy") and "exports/step2" in text("files/model/policy")


def test_hyperparameters_stand_under_the_words_of_the_command_line(events: EventAccumulator) -> None:
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    values = data.session_start_info.hparams
    assert values["gconfig.n_samples"].number_value == 4 and values["econfig.domain"].string_value == "mock"
    assert values["stamp.training.seed"].number_value == 1 and "actor.optimizer.lr" in values
    experiment = plugin_data_pb2.HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/experiment"].plugin_data.content
    )
    assert [metric.name.tag for metric in experiment.experiment.metric_infos] == [SCORE]


def test_the_layout_shows_pass_hat_1_with_its_interval(events: EventAccumulator) -> None:
    (tag,) = [name for name in events.Tags()["tensors"] if "custom_scalars" in name]
    layout = layout_pb2.Layout.FromString(events.Tensors(tag)[0].tensor_proto.string_val[0])
    first = layout.category[0].chart[0].margin.series[0]
    assert (first.value, first.lower, first.upper) == (SCORE, f"{SCORE}_low", f"{SCORE}_high")
    assert [category.title for category in layout.category][-1] == "Where the time goes"
