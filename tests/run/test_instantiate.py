"""Callbacks and loggers come from ``_target_`` entries; errors in them are reported before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from tau2_lightning.callbacks.checkpoints import NewestCheckpoints
from tau2_lightning.callbacks.dashboards import Dashboards
from tau2_lightning.callbacks.exports import PolicyExports
from tau2_lightning.callbacks.health import TrainingHealth
from tau2_lightning.callbacks.kl_rate import KLRate
from tau2_lightning.callbacks.phases import PhaseRecord
from tau2_lightning.callbacks.progress import RunProgress
from tau2_lightning.callbacks.ranks import RankWatch
from tau2_lightning.callbacks.results import ResultsFiles
from tau2_lightning.callbacks.rollouts import RolloutFiles
from tau2_lightning.config.kept import KeptBound
from tau2_lightning.config.secrets import is_secret, without_secrets
from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.run import show
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.instantiate import check_targets, instantiate_callbacks, instantiate_loggers
from tests.run.own_parts import OwnLogger, Watching

OWN = "tests.run.own_parts"


def callbacks(tmp_path: Path, *words: str) -> list[Any]:
    return instantiate_callbacks(load_config(["logger=csv", *words], check=False), RunFolder(tmp_path))


def loggers(tmp_path: Path, *words: str) -> list[Any]:
    return instantiate_loggers(load_config([*words], check=False), RunFolder(tmp_path, start=2))


def test_the_callbacks_of_a_run_follow_the_trainers_keys(tmp_path: Path) -> None:
    words = ["trainer.save_top_k=3", "trainer.checkpoint_every_n_epochs=2", "trainer.progress=plain"]
    words += ["rollout.keep_rollouts=5steps"]
    words += ["actor.optimizer.target_kl=0.02"]
    made = callbacks(tmp_path, *words)
    checkpoints, exports, progress, health, rate, ranks, results, rollouts, phases, boards = made
    assert isinstance(rate, KLRate) and (rate.target, rate.rows) == (0.02, 16)
    assert isinstance(exports, PolicyExports) and exports.keep == 3
    assert isinstance(health, TrainingHealth) and isinstance(ranks, RankWatch)
    assert isinstance(checkpoints, NewestCheckpoints) and checkpoints.keep == 3 and checkpoints.every_n_epochs == 2
    assert isinstance(progress, RunProgress) and progress.style == "plain"
    assert isinstance(results, ResultsFiles) and results.folder == RunFolder(tmp_path)
    assert isinstance(rollouts, RolloutFiles) and rollouts.bound == KeptBound(steps=5)
    assert isinstance(phases, PhaseRecord)
    assert isinstance(boards, Dashboards) and (boards.dialogues, boards.exports) == (4, "reference")


def test_a_callback_is_added_changed_and_removed_by_words(tmp_path: Path) -> None:
    words = [f"callbacks.mine._target_={OWN}.Watching", "+callbacks.mine.note=hello", "callbacks.mine.tags=[a,b]"]
    made = callbacks(tmp_path, *words, "callbacks.progress.style='off'", "~callbacks.results")
    assert [type(one) for one in made] == [
        *(NewestCheckpoints, PolicyExports, RunProgress, TrainingHealth, KLRate, RankWatch),
        *(RolloutFiles, PhaseRecord, Dashboards, Watching),
    ]
    assert made[2].style == "off"
    assert (made[-1].note, made[-1].tags, made[-1].folder) == ("hello", ["a", "b"], RunFolder(tmp_path))
    assert len(callbacks(tmp_path, "callbacks.results=null")) == 9


def test_todays_words_for_loggers_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert loggers(tmp_path, "logger=csv") == []
    (board,) = loggers(tmp_path, "logger=tensorboard")
    assert isinstance(board, TensorBoardLogger) and Path(board.log_dir) == tmp_path / "tensorboard"
    words = ["logger=wandb", "logger.project=p", "logger.entity=e", "logger.tags=[a,b]", "logger.wandb.group=g"]
    (wandb,) = loggers(tmp_path, *words, "experiment_name=x")
    assert isinstance(wandb, WandbLogger)
    init = wandb._wandb_init
    assert (init["project"], init["entity"], init["tags"], init["group"]) == ("p", "e", ["a", "b"], "g")
    assert wandb._offline and init["name"] == f"x/{tmp_path.name}"
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert not loggers(tmp_path, "logger=wandb")[0]._offline


def test_a_logger_of_ones_own_stands_beside_the_others(tmp_path: Path) -> None:
    words = ["logger=tensorboard", f"logger.mine._target_={OWN}.OwnLogger", "logger.mine.name=n", "seed=7"]
    board, mine = loggers(tmp_path, *words)
    assert isinstance(board, TensorBoardLogger) and isinstance(mine, OwnLogger)
    assert (mine.save_dir, mine.name, mine.seed) == (str(tmp_path), "n", 7)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["+callbacks.mine._target_=no.such.Thing"],
            r"callbacks\.mine\._target_='no\.such\.Thing': cannot be",
        ),
        ([f"+callbacks.mine._target_={OWN}.Missing"], r"callbacks\.mine\._target_=.*cannot be imported.*subclass of"),
        ([f"+callbacks.mine._target_={OWN}.OwnLogger"], r"callbacks\.mine\._target_=.*is no Callback.*Name a subclass"),
        ([f"+logger.mine._target_={OWN}.Watching"], r"logger\.mine\._target_=.*is no Logger.*Name a subclass"),
        ([f"+callbacks.mine._target_={OWN}.Watching", "callbacks.mine.nota=x"], r"nota.*takes: note, tags"),
        ([f"+callbacks.mine._target_={OWN}.Slow"], r"callbacks\.mine=\[\]: missing.*'seconds'.*takes: seconds"),
        (
            ["callbacks.progres.style=plain"],
            r"callbacks\.progres=.*names no Callback\. Did you mean callbacks\.pro",
        ),
        (["logger.projct=x"], r"logger\.projct='x': names no Logger\. Did you mean logger\.project"),
        (["callbacks.progress.stile=plain"], r"callbacks\.progress=.*'stile'.*takes: style, console"),
    ],
)
def test_a_wrong_entry_names_key_value_and_mend_before_anything_is_made(words: list[str], told: str) -> None:
    made = len(Watching.made)
    config = load_config(["logger=csv", *words], check=False)
    (violation,) = check_targets(config)
    with pytest.raises(ConfigError, match=told):
        raise ConfigError([violation])
    assert len(Watching.made) == made


def test_wrong_entries_are_told_with_every_other_violation() -> None:
    words = ["+callbacks.mine._target_=no.such.Thing", "+logger.mine._target_=builtins.dict", "valid_dataset.split=dev"]
    with pytest.raises(ConfigError) as error:
        load_config([*words, "gconfig.n_samples=1"])
    keys = {violation.key for violation in error.value.violations}
    assert keys == {"callbacks.mine._target_", "logger.mine._target_", "valid_dataset.split", "gconfig.n_samples"}


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("Breaks", r"callbacks\.mine=.*cannot be made: RuntimeError: no connection"),
        ("a_number", r"callbacks\.mine\._target_=.*is no Callback"),
        ("makes_none", r"callbacks\.mine\._target_=.*made a int"),
    ],
)
def test_what_a_constructor_raises_is_a_violation(target: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        callbacks(tmp_path, f"+callbacks.mine._target_={OWN}.{target}")


def test_secrets_of_ones_own_entries_stay_off_screen_files_and_loggers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "sk-not-for-your-eyes"
    words = ["logger=wandb", f"+logger.mine._target_={OWN}.OwnLogger", f"+logger.mine.api_key={secret}"]
    words += [f"econfig.user_llm_api_key={secret}", f"output_dir={tmp_path}", "trial_name=t"]
    config = load_config(words, check=False)
    assert secret not in yaml.safe_dump(without_secrets(config))
    assert is_secret("logger.mine.api_key") and is_secret("econfig.user_llm_api_key")
    assert not is_secret("logger.mine.name") and not is_secret("econfig.user_llm") and not is_secret("seed")
    assert secret not in str(check_targets(config))
    show.configuration(words, "all", None, resolve=False)
    shown = capsys.readouterr().out
    assert "api_key: '***'" in shown and secret not in shown
    written = RunFolder.create(config).root / "config.yaml"
    assert secret not in written.read_text() and "'***'" in written.read_text()
    (wandb,) = loggers(tmp_path, "logger=wandb", f"econfig.user_llm_api_key={secret}")
    assert secret not in str(wandb._wandb_init)
