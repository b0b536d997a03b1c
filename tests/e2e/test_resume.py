"""``kill -9`` at the nastiest places of runs with a real engine: resumed, a synchronous run is to the bit the run
that was never killed; an asynchronous one has accounted for every episode."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning import read_rollouts
from tau2_lightning.environment import load_tasks
from tau2_lightning.environment.sampler import TaskSampler
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.strategy.checkpoint import read_meta
from tests.chaos.record import differences
from tests.e2e.killed_job import PLACES
from tests.e2e.reference_models import ReferenceModels
from tests.programs import forked

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

BATCHES, GROUPS, SAMPLES, TRIALS = 4, 3, 4, 2
Killed = Callable[..., Path]


@pytest.fixture(scope="module")
def killed(engine_pool: EnginePool, reference: ReferenceModels, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Lets a run die at a place, then go on to its end; returns its folder. All runs use the session's engine."""

    def run(place: str, *words: str) -> Path:
        root = tmp_path_factory.mktemp(place)
        given = [
            f"actor.path={reference.folders['A']}", "actor=tiny", "actor.optimizer.lr=1e-3",
            "actor.optimizer.warmup_steps=0", "actor.ppo_n_minibatches=2",
            f"rollout.engine_urls=[{engine_pool.members[0].client.url}]",
            f"rollout.engine_api_key={engine_pool.settings.api_key}",
            "+rollout.workflow._target_=tests.e2e.slow_agent.SlowAgent",
            "+rollout.workflow.low=0.0", "+rollout.workflow.high=0.1",
            "domain=telecom", "econfig.user=scripted", "econfig.max_steps=14", "econfig.policy=none",
            "gconfig.max_tokens=4000", "gconfig.max_new_tokens=24", f"gconfig.n_samples={SAMPLES}",
            f"train_dataset.batch_size={GROUPS}", f"train_dataset.batches_per_epoch={BATCHES // 2}",
            "valid_dataset.limit=4", f"valid_dataset.num_trials={TRIALS}", "trainer.max_epochs=2",
            "trainer.validate_before=false", "trainer.validate_after=false", "trainer.validate_every_n_epochs=1",
            "trainer.checkpoint_every_n_steps=1", "trainer.progress=plain", "trainer.accelerator=cpu", "logger=csv",
            "rollout.collect_timeout=240", f"output_dir={root}", f"cache_dir={root / 'cache'}", "experiment_name=e",
            "trial_name=t", *words,
        ]  # fmt: skip
        screen = root / "screen.txt"
        code = forked(["-m", "tests.e2e.killed_job", place, *given], screen).wait(600)
        assert code == (0 if place == "nowhere" else -signal.SIGKILL), screen.read_text()[-4000:]
        if place != "nowhere":
            again = forked(["-m", "tests.e2e.killed_job", "nowhere", *given, "ckpt_path=last"], screen)
            assert again.wait(600) == 0, screen.read_text()[-4000:]
        return root / "e" / "t"

    return run


@pytest.fixture(scope="module")
def undisturbed(killed: Killed) -> Path:
    """The folder of the run that nobody killed."""
    return killed("nowhere")


def episodes(run: Path) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Every episode that a run keeps, by its place, without what depends on time."""
    found = {}
    for one in read_rollouts(run):
        place = (one.kind, one.step, one.group, one.sample, one.task_id, one.status)
        assert place not in found, f"kept twice: {place}"
        arrays = (one.tokens, one.logprobs, one.versions, one.trained, one.advantages, one.trainer_logprobs)
        numbers = (one.reward, one.advantage, one.penalty, one.n_turns, one.version, one.oldest_version)
        found[place] = (*numbers, *(values.tobytes() for values in arrays))
    return found


@pytest.mark.parametrize("place", [name for name in PLACES if name != "nowhere"])
def test_a_killed_run_ends_as_the_run_that_was_never_killed(place: str, killed: Killed, undisturbed: Path) -> None:
    run = killed(place)
    assert differences(run, undisturbed) == [], "weights and metrics, to the bit"
    mine, theirs = episodes(run), episodes(undisturbed)
    others = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
    assert not others and len(mine) >= BATCHES * GROUPS * SAMPLES + 2 * 4 * TRIALS, others[:5]


@pytest.mark.parametrize("place", ["in_generation", "in_the_backward", "in_the_weight_sync", "in_the_save"])
def test_an_asynchronous_run_accounts_for_every_episode(place: str, killed: Killed) -> None:
    """Every task that was drawn was played once for the record, all its samples, or is the next to be played."""
    run = killed(place, "rollout.max_head_offpolicyness=1", "rollout.retries=0")
    kept = [one for one in read_rollouts(run, kind="train") if one.final]
    assert {one.step for one in kept if one.status == "trained"} == set(range(BATCHES))
    groups = Counter((one.step, one.group, one.task_id) for one in kept)
    assert set(groups.values()) == {SAMPLES}, "each sample finished or excluded, and none twice"
    newest = RunFolder(run).last_checkpoint()
    assert newest is not None
    state = read_meta(newest)["Tau2DataModule"]["sampler"]
    sampler = TaskSampler(load_tasks("telecom", "full_minus_test"), seed=1)
    drawn = Counter(next(sampler).task_id for _ in range(state["drawn"]))
    played = Counter(task for _, _, task in groups) + Counter(task for _, task in state.get("again", ()))
    assert played == drawn, (played - drawn, drawn - played)
