"""The sections ``cluster`` and ``scheduler``: which machines there are and how processes start on them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .section import Section


class ClusterConfig(Section):
    """What the machines have."""

    n_nodes: int = Field(ge=1, le=65536, description="number of machines")
    n_gpus_per_node: int | None = Field(
        ge=0,
        le=1024,
        description="GPUs per machine; null: those visible here (slurm, ray: what the allocation needs); 0: CPU",
    )
    gpu_memory_gib: float | None = Field(
        gt=0,
        allow_inf_nan=False,
        description="memory of a GPU in GiB, for a plan of other machines; null: that of the GPUs of this machine",
    )


class SchedulerConfig(Section):
    """How processes are started."""

    type: Literal["local", "slurm", "ray"] = Field(
        description="who starts the processes; local: this machine or torchrun"
    )
    cpus_per_node: int | None = Field(
        ge=1, description="CPUs that the job takes of a node; null: with slurm all, with ray one"
    )
    start_timeout: float = Field(gt=0, description="seconds that nodes wait for each other after the job has started")
    slurm: dict[str, Any] | None = Field(
        description="further arguments of sbatch, e.g. {partition: gpu, account: me, time: 600}; time in minutes"
    )
    ray_address: str = Field(
        description="address of the Ray cluster; auto: the cluster of this machine, or RAY_ADDRESS"
    )
