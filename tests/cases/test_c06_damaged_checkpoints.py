"""C6: damage of a checkpoint is found before anything starts; the newest good one is taken, and this is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.manifest import MANIFEST, damage, write_manifest
from tau2_lightning.launch.run_folder import META, RunFolder
from tau2_lightning.run import checkpoints as chosen
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.opening import open_run
from tests.cases.runs import Runs


def data_file(checkpoint: Path) -> Path:
    return next(checkpoint.glob("*.distcp"))


def truncated(checkpoint: Path) -> None:
    file = data_file(checkpoint)
    file.write_bytes(file.read_bytes()[:-100])


def emptied(checkpoint: Path) -> None:
    data_file(checkpoint).write_bytes(b"")


def without_data(checkpoint: Path) -> None:
    data_file(checkpoint).unlink()


def without_metadata(checkpoint: Path) -> None:
    (checkpoint / ".metadata").unlink()


def flipped(checkpoint: Path) -> None:
    """One bit in the middle: sizes and dates stay as they were."""
    file = data_file(checkpoint)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


def flipped_meta(checkpoint: Path) -> None:
    content = bytearray((checkpoint / META).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / META).write_bytes(bytes(content))


def spoilt_manifest(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).write_text("{")


KINDS = [truncated, emptied, without_data, without_metadata, flipped, flipped_meta, spoilt_manifest]


@pytest.fixture(scope="module")
def trained(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps with its two newest checkpoints, of steps 2 and 4."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        runs = Runs(policy, root, patch)
        runs()
        assert runs.kept() == ["step2.ckpt", "step4.ckpt"], "two must be kept by default"
    return root


@pytest.fixture
def runs(trained: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    shutil.copytree(trained / "e", tmp_path / "e")
    return Runs(policy, tmp_path, monkeypatch)


def resumed(root: Path, *words: str) -> Path:
    """The checkpoint that a start in the run's folder would load."""
    given = [f"output_dir={root}", f"cache_dir={root / 'cache'}", "experiment_name=e", "trial_name=t", "domain=mock"]
    config = load_config([*given, "ckpt_path=last", "mode=validate", *words], check=False)
    with open_run(config) as opened:
        assert opened.checkpoint is not None
        return Path(opened.checkpoint)


@pytest.mark.parametrize("spoil", KINDS)
def test_c06_the_newest_good_one_is_taken_and_said(
    runs: Runs, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    newest = runs.checkpoints / "step4.ckpt"
    assert resumed(runs.root) == newest
    spoil(newest)
    assert resumed(runs.root) == runs.checkpoints / "step2.ckpt"
    told = capsys.readouterr().err
    assert "step4.ckpt is damaged (" in told and "continuing from step2.ckpt" in told
    assert runs.kept() == ["step2.ckpt", "step4.ckpt.damaged"], "nothing is deleted"


def test_c06_a_run_goes_on_from_the_good_one(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    flipped(runs.checkpoints / "step4.ckpt")
    assert runs("ckpt_path=last").published == [2, 3, 4], "steps 3 and 4 are made again"
    assert damage(runs.checkpoints / "step4.ckpt") is None


def test_c06_with_none_left_nothing_starts(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in runs.kept():
        flipped(runs.checkpoints / name)
    with pytest.raises(ConfigError, match="no checkpoint that is whole"):
        runs("ckpt_path=last")


def test_c06_one_that_is_named_is_not_replaced_by_another_but_another_is_named(runs: Runs) -> None:
    newest = runs.checkpoints / "step4.ckpt"
    flipped(newest)
    with pytest.raises(
        ConfigError, match=r"step4\.ckpt.*is damaged: the bytes of .*Take .*step2\.ckpt, which is whole"
    ):
        resumed(runs.root, f"ckpt_path={newest}")


def test_c06_one_of_an_earlier_version_without_checksums_is_still_taken(runs: Runs) -> None:
    newest = runs.checkpoints / "step4.ckpt"
    (newest / MANIFEST).unlink()
    assert resumed(runs.root) == newest
    (newest / META).write_bytes(b"")  # what can be found out without digests is found out
    assert resumed(runs.root) == runs.checkpoints / "step2.ckpt"


def test_c06_other_ranks_look_at_sizes_only_and_move_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    truncated(runs.checkpoints / "step4.ckpt")
    monkeypatch.setattr(chosen, "global_rank", lambda: 1)
    config = load_config(["domain=mock", "ckpt_path=last", "mode=validate"], check=False)
    found = chosen.resolve_checkpoint(config, RunFolder(runs.folder))
    assert found == str(runs.checkpoints / "step2.ckpt") and "step4.ckpt" in runs.kept()


def test_c06_the_manifest_lists_every_file_with_its_own_digest(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"same size " + name.encode())
    write_manifest(tmp_path)
    assert damage(tmp_path) is None
    a, b = tmp_path / "a", tmp_path / "b"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    assert damage(tmp_path) == "the bytes of a are not those that were written"
    assert damage(tmp_path, digests=False) is None
