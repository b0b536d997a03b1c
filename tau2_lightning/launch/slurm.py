"""``scheduler.type=slurm``: submits the run as one Slurm job with submitit; each node runs a node agent."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, Violation

from .cluster import placement_of
from .net import own_address
from .node import NodeTask, resumed, run_node
from .placement import Placement
from .run_folder import RunFolder


@dataclass
class SlurmJob:
    """The function that each node of the job runs. submitit stores it, and calls it again when the job is requeued."""

    task: NodeTask
    placement: Placement

    def __call__(self) -> int:
        # Slurm sends SIGTERM at the end of a job and before a requeue; submitit would ignore it.
        signal.signal(signal.SIGTERM, _leave)
        starts = os.environ.get("SLURM_RESTART_COUNT", "0")
        task = replace(self.task, launch_id=f"{os.environ['SLURM_JOB_ID']}-{starts}")
        if int(starts):
            task = resumed(task)
        address = own_address(os.environ["SLURM_LAUNCH_NODE_IPADDR"])
        return run_node(task, int(os.environ["SLURM_NODEID"]), self.placement, address)

    def checkpoint(self) -> Any:
        """Called by submitit near the time limit or at preemption: the requeued job runs this again, and resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def submit(config: RunConfig, words: Sequence[str]) -> int:
    """Submit the run and print how to follow it; returns 0. Raises ConfigError when sbatch refuses it."""
    import submitit
    from submitit.core.utils import FailedJobError

    root = RunFolder.name(config)
    folder = root / "logs" / "slurm"
    placement = placement_of(config)
    named = (*words, f"output_dir={config.output_dir.absolute()}", f"trial_name={root.name}")
    key, wait = secrets.token_urlsafe(24), config.scheduler.start_timeout
    task = NodeTask("", named, os.getcwd(), str(root), key, wait, resume_after(config), config.trainer.grace_seconds)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # submitit stores the task there, with the job's key and secrets from the command line
    executor = submitit.SlurmExecutor(folder)
    try:
        executor.update_parameters(**parameters(config, placement))
        job = executor.submit(SlurmJob(task, placement))
    except (ValueError, FailedJobError) as error:
        given = config.scheduler.slurm
        remedy = "Correct scheduler.slurm (submitit's names: partition, account, qos, time in minutes, ...)"
        raise ConfigError([Violation("scheduler.slurm", given, str(error).strip(), remedy)]) from error
    print(f"submitted job {job.job_id} on {placement.n_nodes} node(s); its run folder is {root}")
    print(f"follow it:  tail -F {folder}/{job.job_id}_*_log.out")
    print(f"cancel it:  scancel {job.job_id}")
    return 0


def resume_after(config: RunConfig) -> float | None:
    """The time (seconds since the epoch) after which a checkpoint is one of this job's; None outside training.

    A requeued job resumes from such a checkpoint, and from a configured ``ckpt_path`` until there is one.
    """
    if config.mode != "train":
        return None
    return 0.0 if config.ckpt_path is None else time.time()


def parameters(config: RunConfig, placement: Placement) -> dict[str, Any]:
    """Arguments of submitit's SlurmExecutor: one task for each node; ``scheduler.slurm`` overrides the rest."""
    s = config.scheduler
    asked: dict[str, Any] = {
        "job_name": config.experiment_name,
        "nodes": placement.n_nodes,
        "ntasks_per_node": 1,
        "time": 24 * 60,
        "additional_parameters": {"requeue": True},
        # When one node fails, Slurm ends the others, which would wait for it.
        "srun_args": ["--kill-on-bad-exit=1"],
    }
    if s.cpus_per_node is None:
        asked["exclusive"] = True
    else:
        asked["cpus_per_task"] = s.cpus_per_node
    if placement.gpus_per_node:
        asked["gpus_per_node"] = placement.gpus_per_node
    return asked | (s.slurm or {})
