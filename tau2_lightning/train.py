"""The main job: compose the configuration -> prepare the policy -> validate -> fit -> validate -> report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import orjson

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.ranks import Job, global_rank
from tau2_lightning.run.cli import Command, run_command
from tau2_lightning.run.compose import load_config

if TYPE_CHECKING:
    from tau2_lightning.evaluation.evaluation import Evaluation
    from tau2_lightning.launch.run_folder import RunFolder
    from tau2_lightning.run.opening import OpenRun
    from tau2_lightning.run.stuck import StuckWatch
    from tau2_lightning.telemetry.memory import PeakMemory

ABOUT = """Train a policy on a tau2 domain, or evaluate one.

  domain=telecom                      train on a tau2 domain (mock, retail, airline, telecom)
  domain=[telecom,retail]             train one policy on several domains
  mode=validate ckpt_path=...         evaluate a checkpoint, or without one the starting policy
  mode=plan                           print what the other words would do and where, start nothing
  mode=plan mode=validate             the same of a validation
  scheduler.type=slurm                submit it as a Slurm job (or ray: run it on a Ray cluster)
  actor.path=FOLDER_OR_ID             a real model instead of the embedded tiny policy
  --multirun seed=1,2,3               one run for each value, each in its own folder
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry. Returns the exit code: 0 done, 1 failed, 2 bad configuration, 130 interrupted."""
    return run_command(Command("tau2_lightning.train", ABOUT, _main), argv)


def _main(words: list[str]) -> int:
    from tau2_lightning.telemetry.warned import warned_again

    with warned_again(shown=global_rank() == 0):
        return _start(words)


def _start(words: list[str]) -> int:
    try:
        config = load_config(words, check=False)  # the plan is printed of a configuration that breaks rules, too
    except ConfigError:
        config = load_config(words, starts=True)  # raises again, with what the rules find in the other keys
    if config.plan:
        from tau2_lightning.run.plan import print_plan

        return print_plan(config, words)
    config = load_config(words, starts=True)
    if global_rank() == 0:
        from tau2_lightning.run.notices import notices

        for notice in notices(config):
            print(f"notice: {notice}")
    if config.scheduler.type == "local" or Job.current() is not None:
        return run(config)
    from tau2_lightning.launch import ray, slurm

    return slurm.submit(config, words) if config.scheduler.type == "slurm" else ray.run(config, words)


def run(config: RunConfig) -> int:
    """Train or validate as configured; returns the exit code."""
    from tau2_lightning.run.deadlines import deadlines_of
    from tau2_lightning.run.loggers import wandb_finished
    from tau2_lightning.run.opening import open_run
    from tau2_lightning.run.stuck import StuckWatch
    from tau2_lightning.telemetry.memory import PeakMemory
    from tau2_lightning.telemetry.warned import warned_again

    memory = PeakMemory()
    # Only rank 0 reports.
    with (
        warned_again(shown=global_rank() == 0),
        memory if global_rank() == 0 else nullcontext(),
        open_run(config) as opened,
        wandb_finished(),
        StuckWatch(opened.clock, opened.folder, opened.stops, lambda: deadlines_of(config)) as watch,
    ):
        return _run(config, opened, memory, watch)


def _run(config: RunConfig, opened: OpenRun, memory: PeakMemory, watch: StuckWatch) -> int:
    from tau2_lightning.callbacks.dashboards import keep_policy
    from tau2_lightning.datamodule import Tau2DataModule
    from tau2_lightning.environment import check_models
    from tau2_lightning.module import GRPOModule
    from tau2_lightning.policy.loading import load_tokenizer
    from tau2_lightning.run.algorithm import instantiate_algorithm
    from tau2_lightning.run.forecast import warnings_of
    from tau2_lightning.run.instantiate import instantiate_callbacks, instantiate_loggers
    from tau2_lightning.run.notices import notices
    from tau2_lightning.run.policy import prepare_policy
    from tau2_lightning.run.router_replay import replay_lines, with_router_replay
    from tau2_lightning.run.setup import build_trainer
    from tau2_lightning.run.start_page import print_start_page
    from tau2_lightning.telemetry.warned import warn

    folder, checkpoint, clock, stops = opened.folder, opened.checkpoint, opened.clock, opened.stops
    # Parts whose construction can reveal configuration errors come before the policy, which may take minutes.
    algorithm = instantiate_algorithm(config)
    callbacks, loggers = instantiate_callbacks(config, folder, stops), instantiate_loggers(config, folder)
    if global_rank() == 0:
        check_models(config)
    policy = prepare_policy(config, clock, folder, checkpoint, stops)
    if global_rank() == 0:
        for line in replay_lines(config, policy):
            print(line, file=sys.stderr)
        for warning in warnings_of(config, policy):
            warn(warning)
        print_start_page(config, policy, folder, checkpoint, loggers)
    config = with_router_replay(config, policy)

    datamodule = Tau2DataModule(config, policy, algorithm, run_dir=folder.root, clock=clock)
    watch.whereabouts = datamodule.whereabouts
    module = GRPOModule.of(config, policy, algorithm)
    trainer = build_trainer(config, folder, callbacks, loggers)

    training, validates = config.mode == "train", config.trainer.limit_val_batches != 0
    # weights_only=True is the safe mode of torch.load, which runs no pickled code; the optimizer and the loops are
    # restored too. An evaluation is of one domain; ranks above 0 have none.
    evaluations: list[tuple[str, Evaluation]] = []
    try:
        with datamodule:
            if validates and (not training or config.trainer.validate_before):
                trainer.validate(module, datamodule, ckpt_path=checkpoint, verbose=False, weights_only=True)
                evaluations += [("before" if training else "score", one) for one in datamodule.newest_evaluations]
            if training:
                trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
            if training and validates and config.trainer.validate_after:
                trainer.validate(module, datamodule, verbose=False)
                evaluations += [("after", one) for one in datamodule.newest_evaluations]
            if training:
                module.archon.save_pretrained(folder.policy, load_tokenizer(policy, config.actor.chat_template))
                keep_policy(trainer, folder.policy)
    except BaseException as error:
        if trainer.is_global_zero and folder.last_checkpoint() is not None:
            words = f"experiment_name={config.experiment_name} trial_name={folder.root.name} ckpt_path=last"
            print(f"to resume, repeat the command and add: {words}", file=sys.stderr)
        if isinstance(error, SystemExit) and trainer.interrupted:  # Lightning's form of Ctrl-C
            return stops.code or 130
        raise
    if trainer.is_global_zero:
        _report(evaluations, clock.seconds, memory.peak, folder, notices(config))
    return 0


def _report(
    evaluations: list[tuple[str, Evaluation]],
    phases: dict[str, float],
    peak_memory: int,
    folder: RunFolder,
    notices: Sequence[str],
) -> None:
    from tau2_lightning.environment import use_of_models
    from tau2_lightning.evaluation.report import print_report, report_payload
    from tau2_lightning.telemetry.warned import warnings_so_far

    models, warnings = use_of_models(), warnings_so_far()
    print_report(evaluations, phases, run_dir=str(folder.root), peak_memory=peak_memory, models=models, notices=notices)
    payload = report_payload(evaluations, phases, peak_memory, models=models, notices=notices, warnings=warnings)
    folder.report.write_bytes(orjson.dumps(payload, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    from tau2_lightning.run.exit import leave

    leave(main())
