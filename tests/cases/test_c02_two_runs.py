"""C2: two runs with one name: the second is refused with the owner's name; locks of dead processes are taken over."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import orjson
import pytest

from tau2_lightning.errors import ConfigError, ParityError
from tau2_lightning.launch.lock import LOCK, RunLock
from tau2_lightning.rollout.engine.generation import Engine, Scores
from tau2_lightning.rollout.weights.parity import Tolerance, check_parity
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import exit_code
from tau2_lightning.run.opening import open_run
from tests.cases.runs import Runs, contents

HOLD = """
import sys, time
from pathlib import Path
from tau2_lightning.launch.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_c02_a_second_run_of_the_name_is_refused_and_then_takes_over_from_the_dead(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(policy, tmp_path, monkeypatch)
    with holder(runs.folder) as other:
        before = contents(runs.folder)
        assert exit_code(lambda: bool(runs("trainer.max_epochs=1"))) == 2
        told = capsys.readouterr().err
        assert f"process {other.pid} on {socket.gethostname()}, since 20" in told and "another trial_name" in told
        assert "rm " not in told, "a living process of this machine needs no such help"
        assert contents(runs.folder) == before
        other.send_signal(signal.SIGKILL)
        other.wait(20)
        runs("trainer.max_epochs=1")
    assert f"taking over the lock of process {other.pid}" in capsys.readouterr().err
    assert (runs.folder / LOCK).read_bytes() == b"", "the run must give the folder free at its end"


def test_c02_a_run_in_progress_is_named_before_what_it_has_saved(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(policy, tmp_path, monkeypatch)
    runs("trainer.max_epochs=1")
    with holder(runs.folder) as other:
        assert exit_code(lambda: bool(runs("trainer.max_epochs=1"))) == 2
        told = capsys.readouterr().err
        assert f"is in use by process {other.pid}" in told and "trained already" not in told


def test_c02_the_check_of_the_configuration_names_the_owner_with_its_other_problems(tmp_path: Path) -> None:
    words = [
        f"output_dir={tmp_path}",
        "experiment_name=e",
        "trial_name=t",
        "domain=mock",
        "gconfig.max_new_tokens=99999",
    ]

    def problems(*more: str) -> list[str]:
        with pytest.raises(ConfigError) as error:
            load_config([*words, *more])
        return [str(one) for one in error.value.violations if one.key in ("trial_name", "gconfig.max_new_tokens")]

    with holder(tmp_path / "e" / "t") as other:
        in_use, _ = sorted(problems(), reverse=True)
        assert f"is in use by process {other.pid}" in in_use
        assert len(problems("mode=plan")) == 2, "a plan says what the start would"
        assert len(problems("scheduler.type=slurm")) == 1, "that job may begin when the folder is free"
        other.send_signal(signal.SIGKILL)
        other.wait(20)
        assert len(problems()) == 1, "a dead owner is no obstacle"


def test_c02_what_another_start_saved_before_the_lock_was_taken_counts(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began, trained and ended between the check of this start and its lock."""
    runs, take = Runs(policy, tmp_path, monkeypatch), RunLock.acquire

    def late(lock: RunLock) -> None:
        monkeypatch.setattr(RunLock, "acquire", take)
        runs("trainer.max_epochs=1")
        take(lock)

    monkeypatch.setattr(RunLock, "acquire", late)
    with pytest.raises(ConfigError, match="has trained already"):
        runs("trainer.max_epochs=1")
    assert (runs.folder / LOCK).read_bytes() == b"", "a refused start holds nothing"


def test_c02_a_run_that_fails_gives_the_folder_free(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(policy, tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match="no checkpoint"):
        runs("ckpt_path=last")
    with RunLock(runs.folder):
        owner = orjson.loads((runs.folder / LOCK).read_bytes())
    assert owner["pid"] == os.getpid() and owner["host"] == socket.gethostname() and owner["started"] > 0


def owned_by(root: Path, **changed: object) -> None:
    with RunLock(root):
        content = orjson.loads((root / LOCK).read_bytes())
    (root / LOCK).write_bytes(orjson.dumps(content | changed))


def test_c02_another_machines_lock_is_respected_and_says_how_to_remove_it(tmp_path: Path) -> None:
    """The kernel's lock of another machine is not seen on every file system; its owner is."""
    owned_by(tmp_path, host="elsewhere")
    with pytest.raises(ConfigError) as error:
        RunLock(tmp_path).acquire()
    assert f"process {os.getpid()} on elsewhere" in str(error.value) and f"rm {tmp_path / LOCK}" in str(error.value)
    (tmp_path / LOCK).unlink()
    with RunLock(tmp_path):
        pass


def test_c02_a_requeued_job_is_the_successor_of_its_earlier_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    owned_by(tmp_path, host="elsewhere", job="77")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    with pytest.raises(ConfigError, match="elsewhere"):
        RunLock(tmp_path).acquire()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with RunLock(tmp_path):
        assert "taking over the lock" in capsys.readouterr().err


def test_c02_an_id_that_another_process_has_now_does_not_count_as_the_owner(tmp_path: Path) -> None:
    owned_by(tmp_path, started=1.0)  # this process's id, but of one that started in 1970
    with RunLock(tmp_path):
        pass
    owned_by(tmp_path)  # where the kernel's lock does not work, the living process of the file holds it
    with pytest.raises(ConfigError, match="is in use by process"):
        RunLock(tmp_path).acquire()


def test_c02_half_a_lock_file_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(b'{"host": "els')
    with RunLock(tmp_path), pytest.raises(ConfigError, match="is in use by process"):
        RunLock(tmp_path).acquire()


def test_c02_a_server_of_engine_urls_belongs_to_one_run(tmp_path: Path) -> None:
    words = ["domain=mock", f"output_dir={tmp_path}", f"cache_dir={tmp_path / 'cache'}", "mode=validate"]
    one = load_config([*words, "trial_name=a", "rollout.engine_urls=['http://e:1','http://e:2']"], check=False)
    other = load_config([*words, "trial_name=b", "rollout.engine_urls=['http://e:2/']"], check=False)
    third = load_config([*words, "trial_name=c", "rollout.engine_urls=['http://e:3']"], check=False)
    with open_run(one):
        refused = pytest.raises(ConfigError, match=r"rollout\.engine_urls='http://e:2/': is in use by process")
        with refused, open_run(other):
            pytest.fail("it was opened")
        with open_run(third):
            pass
    with open_run(other):
        pass


@pytest.mark.parametrize(("served", "said"), [(3, "weights of version 3"), (-1, "weights that no run has published")])
async def test_c02_weights_of_another_run_on_a_server_stop_the_sync(served: int, said: str) -> None:
    """Its numbers may be as close as rounding: those of a step ago often are."""

    class Foreign:
        async def score_everywhere(self, token_ids: object, *, deadline: float) -> dict[str, Scores]:
            return {"engine 0": Scores([-1.0, -2.0], version=4), "engine 1": Scores([-1.0, -2.0], version=served)}

    rows, expected, tolerance = [[1, 2, 3]], [[-1.0, -2.0]], Tolerance.largest(0.01)
    with pytest.raises(ParityError, match=f"engine 1 serves {said}, the trainer is at version 4"):
        await check_parity(cast("Engine", Foreign()), rows, expected, tolerance=tolerance, version=4)
