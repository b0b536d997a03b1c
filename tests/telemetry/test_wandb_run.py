"""The main job with W&B, offline, read back from the file that W&B keeps; without an engine."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr
from dataclasses import dataclass

import pytest

from tau2_lightning.evaluation.evaluation import Evaluation
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.variant import variant
from tau2_lightning.telemetry.wandb_run import STEP
from tests.jobs import run_job, small_policy
from tests.wandb_record import OfflineRun

SCORE = "eval/mock/test/pass^1"
WORDS = (
    "domain=mock", "logger=wandb", "logger.board._target_=tau2_lightning.run.loggers.tensorboard",
    "actor.optimizer.lr=1e-3", "train_dataset.batches_per_epoch=2", "trainer.max_epochs=1",
    "valid_dataset.limit=2", "trainer.export_every_n_steps=1", "callbacks.dashboards.dialogues=3",
    "trainer.progress=plain", "valid_dataset.num_trials=1",
)  # fmt: skip


@dataclass
class Done:
    """What W&B has kept of the job, and what the job has printed on stderr."""

    kept: OfflineRun
    told: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two batches, a validation before and one after, an export of each batch."""
    policy, root = small_policy(tmp_path_factory), tmp_path_factory.mktemp("job")
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(told), warnings.catch_warnings():
        warnings.resetwarnings()  # pytest hides what a person would see; these are Python's own filters
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setattr("tau2_lightning.run.loggers._has_wandb_key", lambda: False)
        # The episodes of the service without an engine are none of tau2's.
        patch.setattr(Evaluation, "write", lambda _, path: path.write_text("{}"))
        run_job(policy, root, patch, *WORDS)
    return Done(OfflineRun(root / "e" / "t"), told.getvalue())


@pytest.fixture
def run(done: Done) -> OfflineRun:
    return done.kept


def test_dialogues_are_tables_of_a_bounded_number_of_rows(run: OfflineRun) -> None:
    logged = [(row[STEP], name) for row in run.history() for name in row if name.startswith("dialogues/")]
    assert [one for one in logged if one[1] == "dialogues/train"] == [(0, "dialogues/train"), (1, "dialogues/train")]
    assert [name for _, name in logged].count("dialogues/validate") == 2
    tables = run.tables()
    assert len(tables) == 4 and all(len(table["data"]) <= 3 for table in tables.values())
    assert all({"task", "reward", "dialogue"} <= set(table["columns"]) for table in tables.values())
    rewards = [row[table["columns"].index("reward")] for table in tables.values() for row in table["data"]]
    assert {0.0, 1.0} <= set(rewards)


def test_results_and_exports_are_artifacts(run: OfflineRun) -> None:
    kept = [(one.type, one.name, set(one.aliases)) for one in run.of("artifact") if one.type in ("results", "model")]
    run_id = run.of("run")[0].run_id
    assert ("model", f"policy-{run_id}", {"latest", "final"}) in kept
    assert ("model", f"policy-{run_id}", {"latest", "step2", "best"}) in kept
    assert kept.count(("results", f"results-{run_id}", {"latest"})) == 2, "one of each validation"
    references = [entry.ref for one in run.of("artifact") if one.type == "model" for entry in one.manifest.contents]
    assert references and all(ref.startswith("file://") for ref in references), "weights are not copied"


def test_the_summary_has_the_best_score_and_numbers_have_an_axis(run: OfflineRun) -> None:
    summary = run.summary()
    assert (summary["best/pass^1"], summary["change/pass^1"], summary["newest/pass^1"]) == (1.0, 0.0, 1.0)
    defined = {metric.name or metric.glob_name: metric for metric in run.of("metric")}
    assert defined[SCORE].summary.max and defined[SCORE].step_metric == STEP
    assert defined["*"].step_metric == STEP and "dialogues/train" in defined
    steps = [row[STEP] for row in run.history() if "loss/mean" in row]
    assert steps == [0, 1]


def test_the_configuration_is_flat_and_seeds_are_a_group(run: OfflineRun) -> None:
    config, about = run.config(), run.of("run")[0]
    assert config["gconfig.n_samples"] == 4 and config["actor.optimizer.lr"] == 1e-3
    assert config["stamp.training.seed"] == 1 and not [name for name in config if isinstance(config[name], dict)][1:]
    assert about.run_group.startswith("e-") and about.job_type == "train" and about.display_name == "e/t"
    words = ["domain=mock", "trial_name=u", "seed=2", "experiment_name=e"]
    assert variant(load_config(words, check=False)).startswith("e-")


def test_the_tensorboard_of_the_same_run_has_the_same(run: OfflineRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path.parents[2] / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    mine = {name for row in run.history() for name in row if not name.startswith(("_", "dialogues", "trainer/"))}
    assert mine - {"epoch"} <= set(tags["scalars"])
    assert {"dialogues/train/0/text_summary", "files/results/results/text_summary"} <= set(tags["tensors"])


def test_the_screen_says_what_runs_where_and_no_library_warns(done: Done) -> None:
    """W&B warned of an argument that Lightning passes, whatever its value."""
    assert "step 2/2" in done.told and "engines   " in done.told and "wandb sync" in done.told
    assert not [
        line for line in done.told.lower().splitlines() if "warn" in line or "deprecat" in line or "it/s" in line
    ]
