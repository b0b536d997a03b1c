"""TRL's side of ``versus_trl.py``: its own ``GRPOTrainer`` on tau2 episodes, one step on each request of the parent.

A step is one batch of episodes and the optimizer steps on it, as on our side. Settings are those that TRL documents for
this kind of training (``environment_factory``), with the same algorithm as ours. Settings that concern speed only are
the fastest that run without a GPU: generation by transformers, no gradient checkpointing, no shuffling.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl_environment import EnvironmentClock, environment_class, response_template, tau2_reward
from turns import Gate

from tau2_lightning.environment import load_tasks
from tau2_lightning.environment.sampler import TaskSampler
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.run.compose import load_config

MAX_STEPS = 1000


class Stopped(Exception):
    """Raised when the parent wants no further step."""


class Steps(TrainerCallback):
    """Waits at the gate before each batch of episodes and reports the sampled tokens of the last one."""

    def __init__(self, gate: Gate, clock: EnvironmentClock, optimizer_steps: int) -> None:
        self.gate, self.clock, self.optimizer_steps = gate, clock, optimizer_steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.optimizer_steps:
            return  # a further optimizer step on the same episodes
        self.gate.facts["environment"] = self.clock.take()
        if not self.gate.wait():
            raise Stopped  # TRL looks at ``control`` only after the next batch has been played

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "completions/mean_length" in logs:
            self.gate.facts["sampled_tokens"] = float(logs["completions/mean_length"])
            self.gate.facts["reward"] = float(logs["reward"])


def main(policy: str, output: str, settings: dict[str, Any], gate: Gate) -> None:
    config = load_config(settings["words"])
    environment = environment_settings(config.econfig)
    c, optimizer = config, config.actor.optimizer
    updates, episodes = c.actor.ppo_n_minibatches, c.train_dataset.batch_size * c.gconfig.n_samples
    tasks = load_tasks(environment.domain, c.train_dataset.split, solo_mode=environment.solo_mode)
    sampler = TaskSampler(tasks, seed=c.seed)
    rows = [
        {"prompt": [{"role": "user", "content": ""}], "task_id": next(sampler).task_id}
        for _ in range(MAX_STEPS * c.train_dataset.batch_size)
    ]
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    tokenizer.response_template = response_template()
    micro_batch = settings["micro_batch"]
    arguments = GRPOConfig(
        output_dir=output,
        use_cpu=True,
        bf16=settings["bf16"],
        seed=c.seed,
        max_steps=MAX_STEPS * updates,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=episodes // updates // micro_batch,
        steps_per_generation=episodes // micro_batch,
        num_generations=c.gconfig.n_samples,
        max_completion_length=c.gconfig.max_tokens // 2,
        max_tool_calling_iterations=c.econfig.max_steps // 2,
        temperature=c.gconfig.temperature,
        learning_rate=optimizer.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=optimizer.warmup_steps,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.gradient_clipping,
        beta=0.0,
        epsilon=c.algorithm["eps_clip"],
        epsilon_high=c.algorithm["eps_clip_higher"],
        loss_type="dapo",  # the mean over the batch's tokens
        scale_rewards="group",
        shuffle_dataset=False,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy, dtype="float32"),
        reward_funcs=tau2_reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=environment_class(environment),
        callbacks=[Steps(gate, EnvironmentClock(), updates)],
    )
    try:
        trainer.train()
    except Stopped:
        trainer.model.save_pretrained(Path(output) / "policy")
        gate.say(saved=str(Path(output) / "policy"))


if __name__ == "__main__":
    *_, reads, writes = sys.argv
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), Gate(int(reads), int(writes)))
