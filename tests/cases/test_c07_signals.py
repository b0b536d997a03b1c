"""C7: SIGTERM and Ctrl-C anywhere: complete steps are saved, the exit code says which; a second one ends at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tau2_lightning import train
from tau2_lightning.errors import DeadlineExceeded
from tau2_lightning.launch.lock import LOCK
from tau2_lightning.launch.manifest import damage
from tau2_lightning.launch.stopping import StopSignals
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import exit_code
from tau2_lightning.strategy.checkpoint import read_meta
from tests.cases.runs import WORDS, Runs
from tests.cases.stopping import Interrupted, signalled
from tests.jobs import own_words
from tests.programs import Forked

EPOCHS = ("train_dataset.batches_per_epoch=3", "trainer.checkpoint_every_n_epochs=9")
VALIDATED = ("trainer.limit_val_batches=1", "trainer.validate_before=false", "trainer.validate_every_n_epochs=1")


@pytest.fixture(autouse=True)
def at_a_terminal() -> Iterator[None]:
    """These tests may be started under nohup, which ignores that the terminal is closed, or in the background of a
    script, where Ctrl-C is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip((signal.SIGHUP, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


def interrupted(
    place: str, number: int, policy: Path, root: Path, *words: str, stays: float = 60.0
) -> tuple[int, Interrupted]:
    """The exit code of a job that gets a signal at ``place`` of its third batch, and its service."""
    with pytest.MonkeyPatch.context() as patch:
        service = Interrupted(place, signalled(number, stays))
        service.install(patch)
        given = [*own_words(policy, root), *WORDS, f"cache_dir={root / 'cache'}", *EPOCHS, *words]
        config = load_config(given, check=False)
        return exit_code(lambda: train.run(config)), service


@pytest.mark.parametrize(
    ("place", "number", "saved", "stays", "words"),
    [
        ("rollout", signal.SIGTERM, 2, 60.0, ()),
        ("rollout", signal.SIGINT, 2, 60.0, ()),
        ("rollout", signal.SIGHUP, 2, 60.0, ()),
        ("step", signal.SIGTERM, 3, 0.5, ()),  # the step is completed, then saved
        ("sync", signal.SIGTERM, 3, 60.0, ()),
        ("validate", signal.SIGTERM, 3, 60.0, VALIDATED),
    ],
    ids=["rollout", "rollout-ctrl-c", "rollout-terminal-closed", "step", "sync", "validate"],
)
def test_c07_a_signal_saves_every_complete_step_and_the_run_goes_on_from_there(
    place: str, number: int, saved: int, stays: float, words: tuple[str, ...], policy: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    began = time.monotonic()
    code, service = interrupted(place, number, policy, tmp_path, *words, stays=stays)
    assert code == 128 + number and time.monotonic() - began < 60, "it may not wait for what stands still"
    assert service.closed, "the engine must be ended in order"
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    told = capfd.readouterr().err
    assert "within 25 s (trainer.grace_seconds)" in told and "ckpt_path=last" in told
    runs = Runs(policy, tmp_path, monkeypatch)
    assert runs.kept() == [f"step{saved}.ckpt"] and damage(runs.checkpoints / f"step{saved}.ckpt") is None
    meta = read_meta(runs.checkpoints / f"step{saved}.ckpt")
    assert meta["weights_version"] == saved
    # A task of a batch that was not trained on is drawn again.
    assert meta["Tau2DataModule"]["sampler"] == {"drawn": saved}
    assert (runs.folder / LOCK).read_bytes() == b""
    # Two epochs of three batches: the run makes what is left of them, no step twice and none less.
    again = runs("ckpt_path=last", *EPOCHS, *words)
    assert again.published == list(range(saved, 7))
    assert again.evaluated == {"validate": 3}.get(place, 0), "the validation that broke off is played, too"
    assert runs.kept()[-1] == "step6.ckpt"


def test_c07_a_step_that_breaks_off_before_a_validation_is_made_before_it(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog ends a step that hangs, in the last batch of an epoch."""

    def hangs() -> None:
        raise DeadlineExceeded("train", 1.0, "in phase 'train'")

    with pytest.MonkeyPatch.context() as patch:
        Interrupted("step", hangs).install(patch)
        words = (*own_words(policy, tmp_path), *WORDS, f"cache_dir={tmp_path / 'cache'}", *EPOCHS, *VALIDATED)
        config = load_config(list(words), check=False)
        assert exit_code(lambda: train.run(config)) == 1
    runs = Runs(policy, tmp_path, monkeypatch)
    meta = read_meta(runs.checkpoints / "step2.ckpt")
    assert meta["weights_version"] == 2 and meta["Tau2DataModule"]["sampler"] == {"drawn": 2}
    assert not meta["unfinished"]["validates"]
    again = runs("ckpt_path=last", *EPOCHS, *VALIDATED, "trainer.validate_after=false")
    assert again.published == list(range(2, 7)) and again.evaluated == 2
    meta = read_meta(runs.checkpoints / "step6.ckpt")
    assert meta["Tau2DataModule"]["sampler"] == {"drawn": 6}


def test_c07_a_terminal_may_tell_twice_that_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel and the shell both do: that is no second wish."""

    def leave(stops: StopSignals, text: str) -> None:
        raise SystemExit(text)

    monkeypatch.setattr(StopSignals, "leave", leave)
    with StopSignals(60.0, lambda: "train") as stops:
        stops.holding = True
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stops.code == 129
        with pytest.raises(SystemExit, match="SIGTERM again: leaving at once"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_c07_nohup_stays_in_force() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals(60.0) as stops:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stops.asked is None and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_c07_before_training_there_is_nothing_to_save_and_it_ends_at_once(policy: Path, tmp_path: Path) -> None:
    code, service = interrupted("start", signal.SIGTERM, policy, tmp_path)
    assert code == 143 and service.closed
    assert not list((tmp_path / "e" / "t" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("words", "again", "told", "kept"),
    [
        (
            [],
            True,
            "SIGTERM again: leaving at once; the last 2 training steps since the newest checkpoint are lost",
            [],
        ),
        (
            ["trainer.grace_seconds=2", "trainer.checkpoint_every_n_steps=1"],
            False,
            "still in phase 'train' after 2 s: leaving; all complete training steps are saved",
            ["step1.ckpt", "step2.ckpt"],
        ),
    ],
    ids=["a-second-signal", "no-boundary-in-time"],
)
def test_c07_a_process_leaves_at_once_and_says_what_is_lost(
    words: list[str], again: bool, told: str, kept: list[str], policy: Path, tmp_path: Path
) -> None:
    command = ["-m", "tests.cases.stopping_job", str(policy), str(tmp_path), "step", *EPOCHS, *words]
    with Forked(command, tmp_path / "screen.txt") as process:
        process.until("at step\n")
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        if again:
            time.sleep(1.0)
            process.send_signal(signal.SIGTERM)
        assert process.wait() == 143 and time.monotonic() - sent < 20
        assert told in process.printed
    assert sorted(path.name for path in (tmp_path / "e" / "t" / "checkpoints").glob("*.ckpt")) == kept
