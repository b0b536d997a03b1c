"""The role of this process in the run, whether Lightning, torchrun, Slurm's srun or a node agent started it."""

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
    """The job of a process that a node agent started. ``agents`` are the addresses ``host:port`` of all node agents."""

    launch_id: str
    node: int
    agents: tuple[str, ...]

    def to_text(self) -> str:
        """The value of ``JOB_VARIABLE``."""
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
    """Rank of this process among the trainer's ranks, 0 for a process that was not launched as a rank."""
    names = os.environ if environment is None else environment
    return int(next((names[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in names), "0"))


def under_torchrun() -> bool:
    """Whether torchrun started this process, and not one of our node agents."""
    return "TORCHELASTIC_RUN_ID" in os.environ and JOB_VARIABLE not in os.environ


def trainer_node_index() -> int:
    """Index of this process's node among the nodes with trainer ranks."""
    return int(os.environ.get("GROUP_RANK", os.environ.get("NODE_RANK", "0")))


def share_under_torchrun(name: str, value: str | None) -> str:
    """Share ``value`` of rank 0 with every rank that torchrun started; the others pass None. Returns rank 0's value.

    It uses the store of torchrun's agent, so that no process group is needed. Raises DeadlineExceeded naming rank 0,
    and ConfigError where that store cannot be used.
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
