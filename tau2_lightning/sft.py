"""Warm start: demonstrations -> tiny policy -> supervised fine-tuning under the same Trainer and strategy as GRPO.

`python -m tau2_lightning.sft domain=telecom` makes the warm-started policy that `tau2_lightning.train` starts from (and
would otherwise make itself); `actor.path=FOLDER warm_start.data=FILE.jsonl` fine-tunes a real model on dialogues.
"""

from __future__ import annotations

from collections.abc import Sequence

from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.run.cli import Command, run_command
from tau2_lightning.run.compose import load_config

ABOUT = """Fine-tune a policy on generated demonstrations or on dialogues; prints the policy's folder.

  domain=telecom                                      the embedded tiny policy, as the main job makes it
  actor.path=FOLDER_OR_ID warm_start.data=FILE.jsonl  a real model, on OpenAI messages
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry: key=value words as for training. Prints the folder of the policy; returns the exit code."""
    return run_command(Command("tau2_lightning.sft", ABOUT, _main), argv)


def _main(words: list[str]) -> int:
    config = load_config(words)
    if config.scheduler.type != "local":
        remedy = "Use local; tau2_lightning.train with the same words makes it inside its job"
        raise ConfigError([Violation("scheduler.type", config.scheduler.type, "the warm start runs here", remedy)])
    # Imported here, because `--help` needs neither torch nor transformers.
    from tau2_lightning.telemetry.quiet import quiet_libraries
    from tau2_lightning.warm_start.make import warm_start_policy

    quiet_libraries()
    print(warm_start_policy(config))
    return 0


if __name__ == "__main__":
    from tau2_lightning.run.exit import leave

    leave(main())
