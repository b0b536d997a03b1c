"""The part of a Slurm or Ray job that runs on every node: starts its trainer ranks, and rank 0's engines on request."""

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

from . import watchdog as engine_watchdog
from .children import end_children
from .meeting import Meeting
from .net import free_port
from .placement import Placement
from .ranks import JOB_VARIABLE, KEY_VARIABLE, Job
from .remote_commands import CommandServer
from .run_folder import RunFolder

GRACE_SECONDS = 20.0  # for a rank that is asked to end, its engine included
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class NodeTask:
    """The same for every node: the ``words`` of the command line (with the run's names), started in ``directory``.

    ``launch_id`` is new at each start of the job, also when it is requeued. ``run_dir`` lies on a file system that all
    nodes share. ``key`` is the secret that lets rank 0 start engines on other nodes. A job that starts again resumes
    from a checkpoint of the run's that is newer than ``resume_after`` (seconds since the epoch); None: from none.
    """

    launch_id: str
    words: tuple[str, ...]
    directory: str
    run_dir: str
    key: str
    start_timeout: float
    resume_after: float | None = None


def run_node(task: NodeTask, node: int, placement: Placement, address: str) -> int:
    """Do this node's part; returns 0 once the whole run is done.

    Raises InfrastructureFault naming the rank that ended otherwise, DeadlineExceeded naming a node that did not come.
    """
    meeting = Meeting(Path(task.run_dir) / "logs" / "launch" / task.launch_id)
    home = placement.trainer_nodes[0]
    with ExitStack() as stack:
        agent = CommandServer(address, task.key)
        stack.callback(agent.close)
        meeting.put(f"node-{node}", {"address": address, "agent": agent.address, "port": free_port(address)})
        cards = [meeting.wait(f"node-{other}", task.start_timeout) for other in range(placement.n_nodes)]
        job = Job(task.launch_id, node, tuple(card["agent"] for card in cards))
        ranks = placement.ranks_on(node)
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(lambda: end_children(processes, GRACE_SECONDS + 5))
        main = (cards[home]["address"], cards[home]["port"])
        for local in range(len(ranks)):
            processes.append(_start(task, rank_variables(placement, local, main, job, task.key)))
        if not processes:
            return _serve(meeting, home)
        code = _watch({f"rank {place.rank}": process for place, process in zip(ranks, processes, strict=True)}, node)
        if node == home:
            meeting.put("done", {"code": code})
        return code


def rank_variables(placement: Placement, local: int, main: tuple[str, int], job: Job, key: str) -> dict[str, str]:
    """What trainer rank ``local`` of the job's node finds in its environment: torchrun's variables, and ours.

    ``main`` is address and port where the ranks meet.
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
    """``task`` started again: from the run's newest checkpoint, if it is newer than ``resume_after``."""
    newest = RunFolder(Path(task.run_dir)).last_checkpoint()
    if task.resume_after is None or newest is None or newest.stat().st_mtime <= task.resume_after:
        return task
    return replace(task, words=(*task.words, "ckpt_path=last"))


def command(task: NodeTask) -> list[str]:
    """What every rank runs."""
    return [sys.executable, "-m", "tau2_lightning.train", *task.words]


def _start(task: NodeTask, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """One rank under a watchdog, so that it ends with this process however that ends. It prints where we print."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    return subprocess.Popen(
        engine_watchdog.guarded(command(task), GRACE_SECONDS),
        stdin=subprocess.PIPE,
        cwd=task.directory,
        env=environment | dict(variables),
        start_new_session=True,
    )


def _watch(processes: Mapping[str, subprocess.Popen[bytes]], node: int) -> int:
    """Wait for all; the first that fails ends the wait."""
    while True:
        codes = {name: process.poll() for name, process in processes.items()}
        for name, code in codes.items():
            if code:
                raise InfrastructureFault(name, "exit", f"ended with code {code} on node {node}; see what it printed")
        if all(code == 0 for code in codes.values()):
            return 0
        time.sleep(POLL_SECONDS)


def _serve(meeting: Meeting, home: int) -> int:
    """A node without ranks holds engines only: it stays until rank 0's node says that the run is over.

    No deadline: a run takes as long as it takes. When a node dies, the scheduler ends the others.
    """
    while (card := meeting.look("done")) is None:
        time.sleep(POLL_SECONDS)
    return int(card["code"])
