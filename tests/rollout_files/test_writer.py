"""Kept episodes: written beside training, whole or not at all, and read back as they were played."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tau2_lightning
from tau2_lightning.algorithm import GRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.config.kept import KeptBound
from tau2_lightning.errors import ConfigError
from tau2_lightning.rollout.collect.collector import Collection
from tau2_lightning.rollout.episode.attempts import FailedAttempt
from tau2_lightning.rollout_files import writer as writer_module
from tau2_lightning.rollout_files.files import episodes_file
from tau2_lightning.rollout_files.names import FOLDER, REPLAYED
from tau2_lightning.rollout_files.played import PlayedBatch, PlayedValidation
from tau2_lightning.rollout_files.schema import KeptEpisode
from tau2_lightning.rollout_files.writer import RolloutWriter
from tau2_lightning.trajectory import EpisodeOutcome, Group, Rollout, Turn
from tests.fake_service import group

STAMP = {"tau2": "26.3", "digest": "d"}
ALGORITHM = GRPO()


def fault(number: int, message: str = "no answer", *, purpose: str = "train") -> FailedAttempt:
    rows = group(9, [0.0]).rollouts[0].trajectories
    return FailedAttempt(purpose, "t9", "mock", "9", number, 0, "engine:timeout", message, True, 100.0, 2.0, rows)


def played(step: int, *groups: Group, dropped: tuple[Group, ...] = (), failed: Any = ()) -> PlayedBatch:
    of_mock = [replace(one, domain="mock") for one in groups]
    collection = Collection(tuple(of_mock), dropped, len(failed), Counter())
    batch = Batch.from_groups(of_mock, ALGORITHM, version=step)
    return PlayedBatch(step, step, collection, failed, batch, {"mock": "train"}, {"mock": STAMP})


def written(root: Path, *all_played: Any, bound: str = "all", **options: Any) -> RolloutWriter:
    writer = RolloutWriter(root, KeptBound.parse(bound), ALGORITHM, **options)
    for one in all_played:
        writer.write(one)
    writer.close()
    return writer


def test_every_token_comes_back_with_what_training_made_of_it(tmp_path: Path) -> None:
    given = group(0, [1.0, 0.0, 0.0])
    one = played(3, given)
    written(tmp_path, one)
    found = list(tau2_lightning.read_rollouts(tmp_path, step=3, split="train"))
    assert [(e.status, e.task_id, e.sample, e.reward, e.stamp) for e in found] == [
        ("trained", "t0", k, r, STAMP) for k, r in enumerate([1.0, 0.0, 0.0])
    ]
    assert one.batch is not None
    for episode, rollout, row in zip(found, given.rollouts, one.batch.rows, strict=True):
        line = rollout.trajectories[0]
        np.testing.assert_array_equal(episode.tokens, line.token_ids)
        np.testing.assert_array_equal(episode.logprobs, line.logprobs)
        np.testing.assert_array_equal(episode.versions, line.versions)
        np.testing.assert_array_equal(episode.trained[1:], row.loss_mask[:-1])
        np.testing.assert_array_equal(episode.advantages[1:], row.advantages[:-1])
        assert episode.trained.sum() == episode.trained_tokens == len(line) - 3
        assert np.sign(episode.advantage) == (1 if episode.reward else -1)
        assert episode.staleness == 3 and np.isnan(episode.trainer_logprobs).all()


def test_what_was_not_trained_on_is_kept_with_its_cause(tmp_path: Path) -> None:
    lost = Collection((), lost=1, lost_groups=(group(3, [1.0]),), stale_groups=(group(4, [1.0, 0.0]),))
    whole = played(0, group(0, [1.0, 0.0]), dropped=(group(1, [0.0, 0.0]),), failed=[fault(1)])
    collection = replace(whole.collection, lost_groups=lost.lost_groups, stale_groups=lost.stale_groups)
    written(tmp_path, replace(whole, collection=collection))
    found = list(tau2_lightning.read_rollouts(tmp_path))
    assert Counter(e.status for e in found) == {"trained": 2, "filtered": 2, "lost": 1, "stale": 2, "failed": 1}
    (failed,) = (e for e in found if e.status == "failed")
    assert (failed.cause, failed.message, failed.reward) == ("engine:timeout", "no answer", None)
    assert len(failed.tokens) and not failed.trained.any(), "what it had sampled by then is kept"
    assert all(not e.trained.any() and e.cause for e in found if e.status in ("filtered", "lost", "stale"))


def test_a_batch_that_broke_off_is_kept(tmp_path: Path) -> None:
    whole = played(0, group(0, [1.0, 0.0]))
    written(tmp_path, replace(whole, batch=None))
    assert [e.status for e in tau2_lightning.read_rollouts(tmp_path)] == ["untrained"] * 2


def test_validations_and_batches_have_files_of_their_own(tmp_path: Path) -> None:
    rollouts = group(5, [1.0, 0.0]).rollouts
    validation = PlayedValidation(2, 1, "mock", "test", rollouts, [fault(7, purpose="validate")], STAMP)
    written(tmp_path, validation, replace(validation, domain="retail"), played(2, group(0, [1.0, 0.0])))
    written(tmp_path, validation, start=2)
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert names == [
        "train-000002.parquet", "validate-000002-v01-s2.parquet", "validate-000002-v01.parquet",
        "validate-000002-v02.parquet",
    ]  # fmt: skip
    tests = list(tau2_lightning.read_rollouts(tmp_path, split="test"))
    assert Counter(e.status for e in tests) == {"validated": 6, "failed": 3}
    assert not any(e.kind == "train" for e in tests)
    assert {e.kind for e in tau2_lightning.read_rollouts(tmp_path, kind="train")} == {"train"}


def test_ranks_write_files_of_their_own(tmp_path: Path) -> None:
    """Two ranks that play, and the log-probs that each has computed of the same batch."""
    one, other = played(0, group(0, [1.0, 0.0])), played(0, group(1, [1.0, 0.0]))
    written(tmp_path, one)
    written(tmp_path, other, rank=1)
    for rank, row in ((0, 0), (1, 1)):
        writer = RolloutWriter(tmp_path, KeptBound(), ALGORITHM, rank=rank)
        assert one.batch is not None
        size = int(one.batch.rows[row].loss_mask.sum())
        writer.write_scores(0, {row: np.full(size, -float(rank + 1), np.float32)})
        writer.close()
    found = list(tau2_lightning.read_rollouts(tmp_path))
    assert [e.task_id for e in found] == ["t0", "t0", "t1", "t1"]
    assert [set(e.trainer_logprobs[e.trained]) for e in found[:2]] == [{-1.0}, {-2.0}]


def test_a_crash_leaves_the_files_before_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = written(tmp_path, played(0, group(0, [1.0, 0.0])))
    (tmp_path / FOLDER / "train-000001.parquet.tmp").write_bytes(b"half of a file")
    assert len(list(tau2_lightning.read_rollouts(tmp_path))) == 2
    monkeypatch.setattr(writer_module, "episodes_file", no_space)
    writer.write(played(1, group(1, [1.0, 0.0])))
    writer.close()
    assert writer.lost == 1 and len(list(tau2_lightning.read_rollouts(tmp_path))) == 2
    monkeypatch.undo()
    writer.continue_from(5)
    writer.write(played(2, group(1, [1.0, 0.0])))
    writer.close()
    assert {e.step for e in tau2_lightning.read_rollouts(tmp_path)} == {0, 2}
    assert not list((tmp_path / FOLDER).glob("*.tmp"))


def no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_the_trainer_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a few files wait; beyond that the newest is given up after a deadline, and counted."""
    gate = threading.Event()
    monkeypatch.setattr(writer_module, "episodes_file", lambda *_: gate.wait(20))
    monkeypatch.setattr(writer_module, "WAIT_SECONDS", 0.05)
    writer = RolloutWriter(tmp_path, KeptBound(), ALGORITHM)
    for step in range(writer_module.PENDING + 3):
        writer.write(played(step, group(0, [1.0, 0.0])))
    assert 1 <= writer.lost <= 2
    gate.set()
    writer.close()


def test_what_is_written_so_far_can_be_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint does: a resumed run does not play its batches again."""
    right = episodes_file

    def slow(*arguments: Any) -> None:
        time.sleep(0.3)
        right(*arguments)

    monkeypatch.setattr(writer_module, "episodes_file", slow)
    writer = RolloutWriter(tmp_path, KeptBound(), ALGORITHM)
    writer.settle()  # nothing yet
    for step in range(2):
        writer.write(played(step, group(step, [1.0, 0.0])))
    writer.settle()
    assert len(list(tau2_lightning.read_rollouts(tmp_path))) == 4
    writer.close()


def test_the_bound_holds_while_training_goes_on(tmp_path: Path) -> None:
    written(tmp_path, *(played(step, group(step, [1.0, 0.0])) for step in range(5)), bound="2steps")
    assert {e.step for e in tau2_lightning.read_rollouts(tmp_path)} == {3, 4}
    nothing = written(tmp_path / "other", played(0, group(0, [1.0, 0.0])), bound="none")
    assert not (tmp_path / "other" / FOLDER).exists() and nothing.lost == 0


def test_a_resumed_run_sets_replayed_steps_aside(tmp_path: Path) -> None:
    written(tmp_path, *(played(step, group(step, [1.0, 0.0])) for step in range(3)))
    writer = RolloutWriter(tmp_path, KeptBound(), ALGORITHM, start=2)
    writer.continue_from(1)
    assert {e.step for e in tau2_lightning.read_rollouts(tmp_path)} == {0}
    assert len(list((tmp_path / FOLDER / REPLAYED).iterdir())) == 2


@pytest.mark.parametrize("validates", [False, True])
def test_validations_that_are_played_again_are_set_aside(validates: bool, tmp_path: Path) -> None:
    rollouts = group(5, [1.0, 0.0]).rollouts
    early, due, late = (PlayedValidation(step, 1, "mock", "test", rollouts, [], STAMP) for step in (1, 2, 4))
    written(tmp_path, early, due, late, played(3, group(0, [1.0, 0.0])))
    writer = RolloutWriter(tmp_path, KeptBound(), ALGORITHM, start=2)
    writer.continue_from(2, validates=validates)
    left = {(one.kind, one.step) for one in tau2_lightning.read_rollouts(tmp_path)}
    assert left == {("validate", 1)} | ({("validate", 2)} if not validates else set())
    assert len(list((tmp_path / FOLDER / REPLAYED).iterdir())) == 2 + validates


def test_secrets_are_not_written(tmp_path: Path) -> None:
    """The message of a fault may quote a request with its key."""
    key = "sk-canary-0123456789"
    outcome = EpisodeOutcome(
        "t", 1.0, "agent_stop", 1, 0, 0, False, False, "none",
        simulation={"messages": [{"role": "user", "content": f"my key is {key}"}]},
    )  # fmt: skip
    given = group(0, [1.0, 0.0])
    spoken = tuple(replace(one, outcome=outcome) for one in given.rollouts)
    one = played(0, replace(given, rollouts=spoken), failed=[fault(0, f"401 for Authorization: Bearer {key}")])
    leaky = replace(one, stamps={"mock": {"user_args": key}})
    written(tmp_path, leaky, secrets=(key,))
    found = list(tau2_lightning.read_rollouts(tmp_path))
    assert found[0].messages[-1]["content"] == "my key is ***"
    assert "***" in found[-1].message and found[0].stamp == {"user_args": "***"}
    assert key not in str([vars(e) for e in found])
    written(tmp_path / "control", leaky)
    assert key in str([vars(e) for e in tau2_lightning.read_rollouts(tmp_path / "control")])


def test_text_that_is_no_valid_unicode_survives(tmp_path: Path) -> None:
    outcome = EpisodeOutcome(
        "t", 1.0, "agent_stop", 1, 0, 0, False, False, "none",
        simulation={"messages": [{"role": "tool", "content": "half \ud83d and \u2028 </script>"}]},
    )  # fmt: skip
    given = group(0, [1.0, 0.0])
    odd = replace(given, rollouts=tuple(replace(r, task_id="t\ud800", outcome=outcome) for r in given.rollouts))
    writer = written(tmp_path, played(0, odd))
    found = list(tau2_lightning.read_rollouts(tmp_path))
    assert writer.lost == 0 and found[0].task_id == "t?"
    assert found[0].messages[-1]["content"] == "half \ud83d and \u2028 </script>"


def test_rewards_penalties_and_times_of_turns(tmp_path: Path) -> None:
    algorithm = GRPO(invalid_format_penalty=0.25)
    given = group(0, [1.0, 0.0])
    seconds = ((0.5, 0.0), (2.0, 0.25))
    outcome = EpisodeOutcome(
        "t0", 1.0, "user_stop", 1, 1, 0, False, False, "u", {"unknown_tool": 2}, {"DB": 1.0}, turn_seconds=seconds
    )
    rollouts = []
    for one in given.rollouts:
        (row,) = one.trajectories
        turn = Turn(3, len(row), invalid_format=True, began_s=0.5, engine_s=1.5, queue_s=0.5)
        rollouts.append(
            replace(one, trajectories=(replace(row, turns=(turn,)),), outcome=outcome, queued_s=3.0, began=9.0)
        )
    whole = replace(given, rollouts=tuple(rollouts), domain="mock")
    batch = Batch.from_groups([whole], algorithm, version=0)
    writer = RolloutWriter(tmp_path, KeptBound(), algorithm)
    writer.write(PlayedBatch(0, 0, Collection((whole,)), (), batch, {"mock": "train"}))
    writer.close()
    first = next(iter(tau2_lightning.read_rollouts(tmp_path)))
    (told,) = first.turns
    assert (told["penalty"], first.penalty) == (0.25, 0.25)
    assert (told["engine_s"], told["queue_s"], told["user_s"], told["tool_s"]) == (1.5, 0.5, 2.0, 0.25)
    assert (first.queued_s, first.opening_s, first.began) == (3.0, 0.5, 9.0)
    assert (first.mistakes, first.reward_parts, first.tau2_reward) == ({"unknown_tool": 2}, {"DB": 1.0}, 1.0)


def test_a_table_needs_no_dialogues(tmp_path: Path) -> None:
    written(tmp_path, played(0, group(0, [1.0, 0.0])))
    (first, _) = tau2_lightning.read_rollouts(tmp_path, dialogues=False)
    assert first.reward == 1.0 and not len(first.tokens) and not first.messages


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    written(tmp_path, played(0, group(0, [1.0, 0.0])))
    table = pq.read_table(tmp_path / FOLDER, columns=["task_id", "reward"])
    assert table.to_pylist() == [{"task_id": "t0", "reward": 1.0}, {"task_id": "t0", "reward": 0.0}]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        tau2_lightning.read_rollouts(tmp_path / "missing")
    assert list(tau2_lightning.read_rollouts(tmp_path)) == []


def test_an_episode_without_rows(tmp_path: Path) -> None:
    """A workflow of the user's may keep its session to itself; then only the reward is known."""
    bare = PlayedValidation(0, 1, "mock", "test", [Rollout("t", "0", 0, 1.0, ())], (), STAMP)
    written(tmp_path, bare)
    (one,) = tau2_lightning.read_rollouts(tmp_path)
    assert isinstance(one, KeptEpisode) and one.reward == 1.0 and len(one.row_lengths) == 0
