"""The sections ``cluster`` and ``scheduler``: which machines there are and how processes start on them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .section import Section


class ClusterConfig(Section):
    """What the machines have."""

    n_nodes: int = Field(ge=1, description="number of machines")
    n_gpus_per_node: int | None = Field(
        ge=0, description="null: what is visible here (slurm, ray: what the allocation needs); 0: CPU"
    )


class SchedulerConfig(Section):
    """How processes are started."""

    type: Literal["local", "slurm", "ray"] = Field(description="local: on this machine or under torchrun")
    cpus_per_node: int | None = Field(ge=1, description="null: slurm takes whole nodes, ray one CPU of each")
    start_timeout: float = Field(gt=0, description="seconds for all nodes to meet, once the job runs")
    slurm: dict[str, Any] | None = Field(
        description="further arguments of sbatch, e.g. {partition: gpu, account: me, time: 600}; time in minutes"
    )
    ray_address: str = Field(description="auto: the cluster this machine belongs to (or RAY_ADDRESS)")
