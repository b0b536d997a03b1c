"""Supervised fine-tuning under the same Trainer and strategy as GRPO: on demonstrations, dialogues or simulations.

`python -m tau2_lightning.sft domain=telecom` makes the warm-started policy that `tau2_lightning.train` starts from (and
would otherwise make itself); with `actor.path=FOLDER` it fine-tunes a real model, also on `data=FILE_OR_FOLDER`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.warm_start import WarmStartConfig
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.stopping import StopSignals
from tau2_lightning.run.cli import Command, run_command
from tau2_lightning.run.compose import load_config, refuse_plan

ABOUT = """Fine-tune a policy on demonstrations, dialogues or successful simulations; prints the policy's folder.

  domain=telecom                                  the embedded tiny policy, as the main job makes it
  actor.path=FOLDER_OR_ID data=FILE.jsonl         a real model, on OpenAI messages
  actor.path=... data=outputs/E/T min_reward=1    on the simulations of a run, or of tau2's results files

Keys of the section warm_start need no prefix here. A command that was cut off goes on when it is repeated.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry: key=value words as for training. Prints the folder of the policy; returns the exit code."""
    return run_command(Command("tau2_lightning.sft", ABOUT, _main, completed=in_section), argv)


def in_section(word: str) -> str:
    """The word with the prefix ``warm_start.`` where it gives a key of that section and none of a whole run."""
    key = word.partition("=")[0]
    ours = key in WarmStartConfig.model_fields and key not in RunConfig.model_fields
    return f"warm_start.{word}" if ours else word


def _main(words: list[str]) -> int:
    config = load_config(words)
    refuse_plan(config)
    if config.scheduler.type != "local":
        remedy = "Use local; tau2_lightning.train with the same words makes it inside its job"
        raise ConfigError([Violation("scheduler.type", config.scheduler.type, "the warm start runs here", remedy)])
    # Imported here, because `--help` needs neither torch nor transformers.
    from tau2_lightning.telemetry.quiet import quiet_libraries
    from tau2_lightning.warm_start.make import warm_start_policy

    quiet_libraries()
    with StopSignals(config.trainer.grace_seconds, lambda: "warm start", leads=global_rank() == 0) as stops:
        policy = warm_start_policy(config, stops=stops)
    if global_rank() == 0:
        print(policy)
    return 0


if __name__ == "__main__":
    from tau2_lightning.run.exit import leave

    leave(main())
