"""Compares our training steps with TRL's: same policy, tasks, episodes, algorithm and processor, in turns in one run.

TRL's ``GRPOTrainer`` plays telecom solo by its documented way for agents, ``environment_factory``, and generates with
transformers (its vLLM modes need a CUDA device). Our side is the main job: vLLM, proxy, tau2, weight sync. Both begin
with the default warm start, draw the same tasks, play ``train_dataset.batch_size`` x ``gconfig.n_samples`` episodes a
step and make the same number of optimizer steps on them. Group filtering is off, so that both train on equally many
episodes. While one works the other waits. TRL makes one step, then ours makes steps until it has used as much time.
After the last turn both have trained for the same time, and one evaluator measures both on held-out tasks.

    python benchmarks/versus_trl.py [--minutes 3.5] [--micro-batch 32] [--fp32] [--policy DIR] [key=value ...]

The comparison leaves out what TRL does not have: tau2's ``done`` (left unparsed so that its loop ends), limits of steps
and errors that end an episode, replacement of groups without signal, faults that are not rewards, pass^k. The first
step of each side warms caches and does not count in the medians. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from turns import Child, Gate

HERE = Path(__file__).parent
AIM = 3.0
STEP_SECONDS = 300.0
WORDS = (
    "domain=telecom", "logger=csv", "trainer.progress=off", "rollout.filter_groups=false", "rollout.official_check=0",
    "actor.optimizer.final_lr_fraction=1.0",
)  # fmt: skip


def ours(policy: str, settings: dict[str, Any], folder: str, gate: Gate) -> None:
    """Run the child that trains with this project and measures both policies at the end."""
    import lightning as L
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader, IterableDataset
    from trl_environment import EnvironmentClock

    from tau2_lightning.callbacks.weight_sync import publish_weights
    from tau2_lightning.datamodule import Tau2DataModule
    from tau2_lightning.environment import load_tasks
    from tau2_lightning.evaluation.plan import ValidationPlan
    from tau2_lightning.module import GRPOModule
    from tau2_lightning.run.algorithm import instantiate_algorithm
    from tau2_lightning.run.compose import load_config
    from tau2_lightning.strategy import ArchonStrategy

    config = load_config(settings["words"])
    clock = EnvironmentClock()

    class Turns(IterableDataset[Any]):
        """A data set that plays a batch of episodes on each request of the parent."""

        def __init__(self, data: Tau2DataModule) -> None:
            self.data = data

        def __len__(self) -> int:
            return 1000

        def __iter__(self) -> Iterator[Any]:
            while gate.wait():
                clock.take()
                batch = self.data.rollouts.collect(self.data.sampler)
                found = batch.statistics
                gate.facts = {"sampled_tokens": found["sampled_tokens/mean"], "reward": found["reward/mean"]}
                gate.facts["environment"] = clock.take()
                yield batch

    class TakingTurns(Tau2DataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Turns(self), batch_size=None)

    algorithm = instantiate_algorithm(config)
    c = config.actor
    module = GRPOModule.of(config, policy, algorithm)
    trainer = L.Trainer(
        strategy=ArchonStrategy("d1p1t1", precision=c.precision, handwritten_elementwise=c.handwritten_elementwise),
        accelerator="cpu", devices=1, max_epochs=1,
        num_sanity_val_steps=0, limit_val_batches=0, inference_mode=False, logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    tasks = load_tasks(config.econfig.domain, config.valid_dataset.split, solo_mode=True)
    plan = ValidationPlan(config.econfig.domain, config.valid_dataset.split, tasks, config.valid_dataset.num_trials)
    with TakingTurns(config, policy, algorithm, run_dir=Path(folder)) as data:
        trainer.fit(module, data)
        scores = {"ours": data.evaluate(plan)}
        for name, path in (("start", policy), ("trl", settings["trl_policy"])):
            weights = list(load_file(f"{path}/model.safetensors").items())
            publish_weights(trainer, data.rollouts.version + 1, iter([weights]))
            scores[name] = data.evaluate(plan)
    gate.say(**{name: score["summary"]["pass_hat"]["1"] for name, score in scores.items()})


def race(sides: dict[str, Child], seconds: float) -> None:
    """Let TRL make a step, then ours until it has used as much time; repeat until TRL has used ``seconds``."""
    for side in sides.values():
        side.hear()  # ready
        side.step()  # caches, first-time compilation
        side.steps[0]["warm_up"] = True
    mine, theirs = sides["ours"], sides["trl"]
    while theirs.total < seconds:
        theirs.step()
        print(f"trl  step {len(theirs.steps):3d}  {theirs.steps[-1]['seconds']:6.1f} s", flush=True)
        while mine.total < theirs.total:
            mine.step()
        print(f"ours step {len(mine.steps):3d}  {mine.steps[-1]['seconds']:6.1f} s", flush=True)


def summary(child: Child, episodes: int) -> dict[str, float]:
    """Return the medians over the counted steps."""
    counted = [step for step in child.steps if not step.get("warm_up")]
    seconds = statistics.median(step["seconds"] for step in counted)
    environment = statistics.median(step["environment"] for step in counted)
    return {
        "steps": len(child.steps),
        "seconds a step": seconds,
        "of it tau2": environment,
        "episodes/s": episodes / seconds,
        "sampled tokens an episode": statistics.mean(step["sampled_tokens"] for step in counted),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.5, help="training time of each side")
    parser.add_argument("--micro-batch", type=int, default=32, help="rows TRL puts through the model at once")
    parser.add_argument("--fp32", action="store_true", help="TRL without bf16 autocast, which is the quicker")
    parser.add_argument("--policy", type=Path, help="a tiny policy to start from; default: the configured warm start")
    parser.add_argument("words", nargs="*", help="overrides of the configuration, for both")
    arguments = parser.parse_args()
    from tau2_lightning.run.compose import load_config
    from tau2_lightning.warm_start.make import warm_start_policy

    words = [*WORDS, *arguments.words]
    config = load_config(words)
    started = time.perf_counter()
    policy = str(arguments.policy or warm_start_policy(config))
    print(f"warm start: {time.perf_counter() - started:.0f} s, {policy}", flush=True)
    episodes = config.train_dataset.batch_size * config.gconfig.n_samples
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        trl_folder = root / "trl"
        trl_settings = {"words": words, "micro_batch": arguments.micro_batch, "bf16": not arguments.fp32}
        our_settings = {"words": [*words, f"output_dir={folder}"], "trl_policy": str(trl_folder / "policy")}
        sides = {
            "ours": Child(
                "ours", [__file__, "--child", policy, json.dumps(our_settings), str(root / "run")], root / "ours.log",
                timeout=STEP_SECONDS,
            ),
            "trl": Child(
                "trl", [str(HERE / "trl_side.py"), policy, str(trl_folder), json.dumps(trl_settings)], root / "trl.log",
                timeout=STEP_SECONDS,
            ),
        }  # fmt: skip
        try:
            race(sides, 60 * arguments.minutes)
            sides["trl"].tell("stop")
            sides["trl"].hear()
            sides["ours"].tell("stop")
            scores = sides["ours"].hear()
        finally:
            for side in sides.values():
                side.close()
    figures = {name: summary(side, episodes) for name, side in sides.items()}
    for name, found in figures.items():
        text = "  ".join(f"{key} {value:.2f}" for key, value in found.items())
        print(f"{name:5s} {text}")
    for name, estimate in scores.items():
        print(f"pass^1 {name:6s} {estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]")
    mine, theirs = figures["ours"], figures["trl"]
    ratios = {
        "step_time_trl_over_ours": theirs["seconds a step"] / mine["seconds a step"],
        "without_tau2": (theirs["seconds a step"] - theirs["of it tau2"])
        / (mine["seconds a step"] - mine["of it tau2"]),
        "pass^1_gain_ours_minus_trl": scores["ours"]["value"] - scores["trl"]["value"],
    }
    print(json.dumps({"ratios": ratios, "aims": {"step_time_trl_over_ours": AIM}, "figures": figures}))


if __name__ == "__main__":
    if "--child" in sys.argv:
        *_, child_policy, child_settings, child_folder, reads, writes = sys.argv
        ours(child_policy, json.loads(child_settings), child_folder, Gate(int(reads), int(writes)))
    else:
        main()
