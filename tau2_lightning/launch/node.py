"""The node agent of a Slurm or Ray job: it starts its node's trainer ranks, and engines when rank 0 asks for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tau2_lightning.errors import InfrastructureFault

from . import watchdog
from .children import end_children
from .net import free_port
from .placement import Placement
from .ranks import JOB_VARIABLE, KEY_VARIABLE, Job
from .remote_commands import CommandServer
from .rendezvous import Rendezvous
from .run_folder import RunFolder
from .secret_words import split_words

GRACE_SECONDS = 3.0  # beyond a rank's own grace: it leaves by itself, and says what is saved
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class NodeTask:
    """The work of every node of a job: run the command with these ``words``, which include the run's names.

    Ranks start in ``directory``. ``launch_id`` is new at each start of the job, also when it is requeued. ``run_dir``
    is on a file system that all nodes share. ``key`` is the secret with which rank 0 may start engines on other nodes.
    ``start_timeout`` is in seconds, and ``grace`` how long a rank may take to save and end. A requeued job resumes from
    the run's newest checkpoint if that is newer than ``resume_after`` (seconds since the epoch); None never resumes.
    """

    launch_id: str
    words: tuple[str, ...]
    directory: str
    run_dir: str
    key: str
    start_timeout: float
    resume_after: float | None = None
    grace: float = 0.0


def run_node(task: NodeTask, node: int, placement: Placement, address: str) -> int:
    """Do this node's part; returns 0 once the whole run is done.

    Raises InfrastructureFault naming a rank that failed, DeadlineExceeded naming a node that did not start.
    """
    rendezvous = Rendezvous(Path(task.run_dir) / "logs" / "launch" / task.launch_id)
    home = placement.trainer_nodes[0]
    with ExitStack() as stack:
        agent = CommandServer(address, task.key)
        stack.callback(agent.close)
        rendezvous.put(f"node-{node}", {"address": address, "agent": agent.address, "port": free_port(address)})
        entries = [rendezvous.wait(f"node-{other}", task.start_timeout) for other in range(placement.n_nodes)]
        job = Job(task.launch_id, node, tuple(entry["agent"] for entry in entries))
        ranks = placement.ranks_on(node)
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(lambda: end_children(processes, task.grace + GRACE_SECONDS + 1))
        main = (entries[home]["address"], entries[home]["port"])
        for local in range(len(ranks)):
            processes.append(_start(task, rank_variables(placement, local, main, job, task.key)))
        if not processes:
            return _serve(rendezvous, home)
        code = _watch({f"rank {place.rank}": process for place, process in zip(ranks, processes, strict=True)}, node)
        if node == home:
            rendezvous.put("done", {"code": code})
        return code


def rank_variables(placement: Placement, local: int, main: tuple[str, int], job: Job, key: str) -> dict[str, str]:
    """Environment variables of trainer rank ``local`` on the job's node: torchrun's, and ours.

    ``main`` is the address and port at which the ranks meet.
    """
    each = placement.ranks_per_node
    group = placement.trainer_nodes.index(job.node)
    return {
        "RANK": str(group * each + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(len(placement.trainer)),
        "LOCAL_WORLD_SIZE": str(each),
        "GROUP_RANK": str(group),
        "MASTER_ADDR": main[0],
        "MASTER_PORT": str(main[1]),
        "TORCHELASTIC_RUN_ID": job.launch_id,
        JOB_VARIABLE: job.to_text(),
        KEY_VARIABLE: key,
    }


def resumed(task: NodeTask) -> NodeTask:
    """``task`` for a requeued job: it resumes from the newest checkpoint if that is newer than ``resume_after``."""
    newest = RunFolder(Path(task.run_dir)).last_checkpoint()
    if task.resume_after is None or newest is None or newest.stat().st_mtime <= task.resume_after:
        return task
    return replace(task, words=(*task.words, "ckpt_path=last"))


def command(task: NodeTask) -> list[str]:
    """The command line of every rank, without the words that hold secrets."""
    return [sys.executable, "-m", "tau2_lightning.train", *split_words(task.words)[0]]


def _start(task: NodeTask, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start one rank under a watchdog, so that it ends with this process. Its output goes where ours goes."""
    variables = {**variables, **split_words(task.words)[1]}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    return subprocess.Popen(
        watchdog.guarded(command(task), task.grace + GRACE_SECONDS),
        stdin=subprocess.PIPE,
        cwd=task.directory,
        env=environment | dict(variables),
        start_new_session=True,
    )


def _watch(processes: Mapping[str, subprocess.Popen[bytes]], node: int) -> int:
    """Wait for all ranks; returns 0. Raises InfrastructureFault when the first one fails."""
    while True:
        codes = {name: process.poll() for name, process in processes.items()}
        for name, code in codes.items():
            if code:
                raise InfrastructureFault(name, "exit", f"ended with code {code} on node {node}; see what it printed")
        if all(code == 0 for code in codes.values()):
            return 0
        time.sleep(POLL_SECONDS)


def _serve(rendezvous: Rendezvous, home: int) -> int:
    """Wait on a node without ranks, which holds only engines, until rank 0's node reports the end of the run.

    There is no deadline, since a run may take any time. When a node dies, the scheduler ends the others.
    """
    while (entry := rendezvous.look("done")) is None:
        time.sleep(POLL_SECONDS)
    return int(entry["code"])
