"""Which process of the run this is, whoever started it: Lightning, torchrun, Slurm's srun, or our node agents."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta

from tau2_lightning.errors import ConfigError, DeadlineExceeded, Violation

JOB_VARIABLE = "TAU2_LIGHTNING_JOB"
KEY_VARIABLE = "TAU2_LIGHTNING_JOB_KEY"
SHARE_SECONDS = 300.0


@dataclass(frozen=True)
class Job:
    """What a node agent tells the processes it starts. ``agents`` are ``host:port`` of every node's agent, by node."""

    launch_id: str
    node: int
    agents: tuple[str, ...]

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def current(cls) -> Job | None:
        """The job this process belongs to, or None when no node agent started it."""
        text = os.environ.get(JOB_VARIABLE)
        if text is None:
            return None
        fields = json.loads(text)
        return cls(fields["launch_id"], fields["node"], tuple(fields["agents"]))


def global_rank(environment: Mapping[str, str] | None = None) -> int:
    """Rank of this process among the trainer's. 0 for a process that nobody launched as a rank."""
    names = os.environ if environment is None else environment
    return int(next((names[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in names), "0"))


def under_torchrun() -> bool:
    """Whether torchrun (not one of our node agents) started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and JOB_VARIABLE not in os.environ


def trainer_node_index() -> int:
    """Which of the nodes with trainer ranks this process is on, counted from 0."""
    return int(os.environ.get("GROUP_RANK", os.environ.get("NODE_RANK", "0")))


def share_under_torchrun(name: str, value: str | None) -> str:
    """``value`` of rank 0, on every rank that torchrun started. Rank 0 gives it, the others None.

    Uses the store of torchrun's own agent, before any process group exists. Raises DeadlineExceeded naming rank 0, and
    ConfigError where that store cannot be used.
    """
    import torch.distributed as dist

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        problem = "this launcher gives the ranks no common place to agree on a name"
        raise ConfigError([Violation("trial_name", None, problem, "Give trial_name")])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = timedelta(seconds=SHARE_SECONDS)
    key = f"tau2_lightning/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=limit, wait_for_workers=False)
        if value is not None:
            store.set(key, value)
            return value
        return str(store.get(key).decode())
    except dist.DistStoreError as error:
        raise DeadlineExceeded("rank 0", SHARE_SECONDS, f"waiting for its {name} at {host}:{port}") from error
