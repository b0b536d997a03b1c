"""C1: the name of a run that has trained is refused without ``ckpt_path=last``; nothing of that run changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning.errors import ConfigError
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import exit_code
from tests.cases.runs import Runs, contents


def test_c01_the_same_name_again_is_refused_with_both_ways_out(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs("trainer.max_epochs=1")
    before = contents(runs.folder)
    assert exit_code(lambda: bool(runs("trainer.max_epochs=1"))) == 2
    told = capsys.readouterr().err
    assert "trial_name='t'" in told and "ckpt_path=last" in told and "another trial_name" in told
    assert contents(runs.folder) == before, "the refused start may not touch a file"


def test_c01_the_command_refuses_it_with_its_other_problems_in_one_error(runs: Runs) -> None:
    """At the start and in a plan (`load_config` checks for both), before anything is made."""
    runs("trainer.max_epochs=1")
    words = [f"output_dir={runs.root}", "experiment_name=e", "domain=mock", "gconfig.max_new_tokens=99999"]
    for mode in ("train", "plan"):
        with pytest.raises(ConfigError) as error:
            load_config([*words, "trial_name=t", f"mode={mode}"])
        assert {"trial_name", "gconfig.max_new_tokens"} <= {one.key for one in error.value.violations}
    with pytest.raises(ConfigError) as error:
        load_config([*words, "trial_name=other"])
    assert "trial_name" not in {one.key for one in error.value.violations}


def test_c01_both_ways_out_lead_on(runs: Runs) -> None:
    runs("trainer.max_epochs=1")
    assert runs("ckpt_path=last").published == [2, 3, 4], "the checkpoint's weights, then two more steps"
    assert runs("trainer.max_epochs=1", "trial_name=other").published == [1, 2]


def test_c01_another_runs_checkpoint_does_not_open_the_folder(runs: Runs, tmp_path: Path) -> None:
    runs("trainer.max_epochs=1")
    runs("trainer.max_epochs=1", "trial_name=other")
    foreign = tmp_path / "e" / "other" / "checkpoints" / "step2.ckpt"
    before = contents(runs.folder)
    with pytest.raises(ConfigError, match="has trained already"):
        runs(f"ckpt_path={foreign}")
    assert contents(runs.folder) == before
    assert runs(f"ckpt_path={foreign}", "trial_name=third").published == [2, 3, 4]


def test_c01_going_back_to_an_older_checkpoint_needs_a_name_of_its_own(runs: Runs) -> None:
    runs()
    older = runs.checkpoints / "step2.ckpt"
    with pytest.raises(ConfigError, match=r"older than step4\.ckpt of the same run"):
        runs(f"ckpt_path={older}", "trainer.max_epochs=3")
    assert runs(f"ckpt_path={runs.checkpoints / 'step4.ckpt'}", "trainer.max_epochs=3").published == [4, 5, 6]


def test_c01_a_start_that_has_nothing_to_lose_may_be_repeated(runs: Runs) -> None:
    """A run that failed before its first checkpoint, and a validation, leave nothing that training could overwrite."""
    runs("mode=validate", "trainer.limit_val_batches=1")
    assert runs("trainer.max_epochs=1").published == [1, 2]
    assert runs("mode=validate", "trainer.limit_val_batches=1", "ckpt_path=last").evaluated == 1
    assert {path.name for path in runs.folder.glob("report*")} == {"report.json", "report-2.json", "report-3.json"}
