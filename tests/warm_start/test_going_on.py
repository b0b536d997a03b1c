"""A warm start that is cut off goes on where it was: the result is the same to the last bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tau2_lightning import sft
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import TrainingDiverged
from tau2_lightning.launch.stopping import Stopped, StopSignals
from tau2_lightning.policy.dialogues import TextDialogue
from tau2_lightning.policy.loading import load_tokenizer
from tau2_lightning.run.compose import load_config
from tau2_lightning.strategy.opening import load_causal_lm
from tau2_lightning.warm_start import make
from tau2_lightning.warm_start.module import SFTModule
from tests.jobs import small_policy

STEPS = 6


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


def words(cache: Path, data: Path, policy: Path | None, *more: str) -> list[str]:
    given = [f"actor.path={policy}", "actor=tiny"] if policy is not None else []
    return [
        *given, f"warm_start.data={data}", f"warm_start.steps={STEPS}", "warm_start.tokens_per_step=300",
        "warm_start.precision=fp32", f"cache_dir={cache}", "trainer.progress=off", "trainer.accelerator=cpu", *more,
    ]  # fmt: skip


def config(*given: Any) -> RunConfig:
    return load_config(words(*given), check=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "warm_start").iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("kind", ["tiny", "given", "lora"])
def test_cut_off_by_an_error_and_by_a_signal_it_goes_on_bit_by_bit(
    kind: str, data: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = None if kind == "tiny" else policy
    more = ["actor.lora.r=2", "warm_start.learning_rate=0.05"] if kind == "lora" else []
    whole = make.warm_start_policy(config(tmp_path / "whole", data, given, *more))
    cut = config(tmp_path / "cut", data, given, *more)
    step, made, failed = SFTModule.training_step, list[int](), list[int]()

    def failing(self: SFTModule, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 2 and not failed:
            failed.append(2)
            raise RuntimeError("a cosmic ray")
        if self.trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # the step is completed
        made.append(self.trainer.global_step)
        step(self, batch, batch_idx)

    monkeypatch.setattr(SFTModule, "training_step", failing)
    with pytest.raises(RuntimeError, match="cosmic ray"):
        make.warm_start_policy(cut)
    assert made == [0, 1] and len(leftovers(tmp_path / "cut")) == 1, "the work is kept with its checkpoint"
    with pytest.raises(Stopped) as stopped, StopSignals(60.0, lambda: "warm start") as stops:
        make.warm_start_policy(cut, stops=stops)
    assert stopped.value.number == signal.SIGTERM
    resumed = make.warm_start_policy(cut)
    assert sorted(made) == list(range(STEPS)), "no step twice and none left out"
    assert "the same command goes on from its checkpoint" in capfd.readouterr().err
    ours, theirs = weights(resumed), weights(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    start = weights(policy) if given is not None else None
    assert start is None or any(not torch.equal(start[name], theirs[name]) for name in theirs), "it learned nothing"
    assert leftovers(tmp_path / "cut") == leftovers(tmp_path / "whole") == []
    assert (resumed / "adapter" / "adapter_model.safetensors").is_file() == (kind == "lora")
    assert (resumed / "warm_start.csv").is_file()


def make_it(words_: list[str]) -> None:
    make.warm_start_policy(load_config(words_, check=False))


def test_killed_it_goes_on_from_its_checkpoint(
    data: Path, policy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """kill -9; the next start takes over the lock of the dead process, and what was half-written is removed."""
    given = [*words(tmp_path, data, policy, "warm_start.checkpoint_every_n_steps=1"), "warm_start.steps=4000"]
    process = multiprocessing.get_context("fork").Process(target=make_it, args=(given,))
    process.start()
    deadline = time.monotonic() + 300
    while not (found := list(tmp_path.glob("warm_start/.*.work/checkpoints/step*.ckpt/meta.pt"))):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    checkpoints = found[0].parents[1]
    (checkpoints / "step9999.ckpt.partial").mkdir()
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:

        def stop(self: SFTModule, batch: Any, batch_idx: int) -> None:
            seen.append(self.trainer.global_step)
            raise RuntimeError("enough")

        patch.setattr(SFTModule, "training_step", stop)
        with pytest.raises(RuntimeError, match="enough"):
            make_it(given)
    assert seen[0] > 0, "it began anew"
    assert "taking over the lock of process" in capfd.readouterr().err
    assert not list(checkpoints.glob("*.partial"))


def test_a_damaged_checkpoint_is_not_used(
    data: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    step = SFTModule.training_step
    seen: list[int] = []

    def failing(self: SFTModule, batch: Any, batch_idx: int) -> None:
        seen.append(self.trainer.global_step)
        if len(seen) == 3:
            raise RuntimeError("a cosmic ray")
        step(self, batch, batch_idx)

    monkeypatch.setattr(SFTModule, "training_step", failing)
    with pytest.raises(RuntimeError, match="cosmic ray"):
        make.warm_start_policy(config(tmp_path, data, policy))
    (meta,) = tmp_path.glob("warm_start/.*.work/checkpoints/*.ckpt/meta.pt")
    meta.write_bytes(meta.read_bytes()[:-1] + b"x")
    make.warm_start_policy(config(tmp_path, data, policy))
    assert seen == [0, 1, 2, *range(STEPS)]
    assert "is damaged" in capfd.readouterr().err


def test_what_only_watches_makes_no_other_policy(data: Path, policy: Path, tmp_path: Path) -> None:
    made = make.warm_start_policy(config(tmp_path, data, policy))
    again = ["warm_start.checkpoint_every_n_minutes=1", "warm_start.validate_every_n_steps=2"]
    assert make.warm_start_policy(config(tmp_path, data, policy, *again)) == made
    assert make.warm_start_policy(config(tmp_path, data, policy, "actor.lora.r=2")) != made


def test_passes_over_the_data_where_no_steps_are_given(data: Path, policy: Path, tmp_path: Path) -> None:
    made = make.warm_start_policy(config(tmp_path, data, policy, "warm_start.steps=null", "warm_start.epochs=3"))
    facts = json.loads((made / "warm_start.json").read_text())
    assert facts["steps"] % 3 == 0 and facts["steps"] >= 3 * facts["rows"] * facts["tokens_per_dialogue"] // 300


def test_held_out_tasks_give_the_loss_that_training_does_not_see(data: Path, policy: Path, tmp_path: Path) -> None:
    given = ["warm_start.valid_share=0.25", "warm_start.validate_every_n_steps=2"]
    made = make.warm_start_policy(config(tmp_path, data, policy, *given))
    facts = json.loads((made / "warm_start.json").read_text())
    assert facts["dialogues"] == 9 and facts["held_out_dialogues"] == facts["held_out_rows"] == 3
    header, *lines = (made / "warm_start.csv").read_text().splitlines()
    column = header.split(",").index("sft/valid_loss")
    losses = [float(line.split(",")[column]) for line in lines if line.split(",")[column]]
    assert len(losses) == STEPS // 2 and losses[-1] < losses[0] and facts["sft/valid_loss"] == pytest.approx(losses[-1])


def test_dialogues_of_one_task_are_held_out_together() -> None:
    dialogues = [TextDialogue([], task=task) for task in "aabbccdd"]
    training, apart = make.held_apart(dialogues, 0.25, seed=0)
    assert len(apart) == 2 and len({one.task for one in apart}) == 1
    assert not {one.task for one in training} & {one.task for one in apart}
    assert make.held_apart(dialogues, 0.0, seed=0) == (dialogues, [])
    assert make.held_apart(dialogues[:2], 0.5, seed=0) == (dialogues[:2], []), "one task cannot be divided"


def test_the_trained_policy_is_in_the_models_dtype(data: Path, policy: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    load_causal_lm(policy).to(torch.bfloat16).save_pretrained(half)
    load_tokenizer(policy).save_pretrained(half)
    made = make.warm_start_policy(config(tmp_path, data, half))
    assert {tensor.dtype for tensor in weights(made).values()} == {torch.bfloat16}


def test_the_commands_words_need_no_prefix() -> None:
    assert sft.in_section("data=a.json") == "warm_start.data=a.json"
    assert sft.in_section("min_reward=1") == "warm_start.min_reward=1"
    assert [sft.in_section(word) for word in ("seed=3", "domain=mock", "warm_start.steps=1", "data.x=1")] == [
        "seed=3", "domain=mock", "warm_start.steps=1", "data.x=1",
    ]  # fmt: skip


def test_a_gradient_that_is_not_finite_ends_it(
    data: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tau2_lightning.strategy.archon.ArchonStrategy.clip_grad_norm", lambda *_: torch.tensor(float("nan"))
    )
    with pytest.raises(TrainingDiverged, match="step 0: the gradient's norm is nan"):
        make.warm_start_policy(config(tmp_path, data, policy))
    assert leftovers(tmp_path) == []
