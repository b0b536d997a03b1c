"""The rules of ``allocation_mode``, ``cluster`` and ``scheduler``."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator

from tau2_lightning.config.allocation import Allocation, AllocationError, Component
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import Violation

from .cluster import placement_of, visible_gpus
from .placement import USER, Placement
from .ranks import Job, under_torchrun


def check_launch(config: RunConfig) -> Iterator[Violation]:
    """Every violation of the allocation against the cluster, and of the scheduler against this machine."""
    try:
        allocation = Allocation.parse(config.allocation_mode)
        allocation.check_runnable()
        _roles(config, allocation)
        placement = placement_of(config)
    except AllocationError as error:
        yield pointing(error)
        return
    if placement.on_cpu and config.trainer.accelerator == "cuda":
        problem = "cluster.n_gpus_per_node is 0, or null and no GPU is visible here: that means CPU"
        yield Violation("trainer.accelerator", "cuda", problem, "Use auto, or show the run its GPUs")
    if allocation.generation is not None:
        yield from _user_engine(config, placement)
    if allocation.generation is None and not config.rollout.engine_urls:
        remedy = "Add e.g. vllm:d1+ in front, or set rollout.engine_urls"
        yield Violation("allocation_mode", config.allocation_mode, "names no engine", remedy)
    if allocation.training is None:
        yield Violation("allocation_mode", config.allocation_mode, "names no trainer", "Add e.g. +archon:d1p1t1")
    elif Job.current() is None:
        yield from _scheduler(config, placement)


def pointing(error: AllocationError) -> Violation:
    """The violation that quotes the allocation and points at its character."""
    caret = f"    {error.text}\n    {error.marks}"
    return Violation("allocation_mode", error.text, error.problem, f"{error.allowed}\n{caret}")


def _roles(config: RunConfig, allocation: Allocation) -> None:
    """Raise AllocationError for a component that is none of these: the policy's engine, the user's, the trainer."""

    def refuse(component: Component, problem: str, allowed: str) -> AllocationError:
        return AllocationError(config.allocation_mode, component.position, f"{component}: {problem}", allowed)

    generating = [component for component in allocation.components if component.generates]
    for component in [component for component in allocation.components if not component.generates][1:]:
        raise refuse(component, "one component trains; this is a second one", "Leave it out")
    for component in generating[1:]:
        if component.name != USER:
            raise refuse(component, "nothing would use it", f"Call it {component.backend}[{USER}], or leave it out")
        if config.econfig.user_engine.path is None:
            raise refuse(component, "no user engine is configured", "Set econfig.user_engine.path, or leave it out")
    for component in generating:
        if component.spec.p > 1:
            raise refuse(component, "engines are not split over p here", "Use t within a node, d for more engines")


def _user_engine(config: RunConfig, placement: Placement) -> Iterator[Violation]:
    """On GPUs a user engine without devices of its own would not fit beside the policy's engine."""
    share = config.rollout.gpu_memory_utilization
    homeless = config.econfig.user_engine.path is not None and placement.user is None
    if homeless and not placement.on_cpu and visible_gpus(config) and 2 * share > 1:
        problem = f"gives the user's engine no device, and two engines of {share:g} do not fit on one"
        remedy = f"Add vllm[{USER}]:d1, or lower rollout.gpu_memory_utilization below .5"
        yield Violation("allocation_mode", config.allocation_mode, problem, remedy)


def _scheduler(config: RunConfig, placement: Placement) -> Iterator[Violation]:
    kind = config.scheduler.type
    package = {"slurm": "submitit", "ray": "ray"}.get(kind)
    if package is not None and importlib.util.find_spec(package) is None:
        yield Violation("scheduler.type", kind, f"{package} is not installed", f"Install tau2-lightning[{kind}]")
    if kind == "slurm" and shutil.which("sbatch") is None:
        remedy = "Run this on a machine that submits to Slurm, or use scheduler.type=local"
        yield Violation("scheduler.type", kind, "sbatch is not in PATH", remedy)
    if kind == "local":
        yield from _local(config, placement)


def _local(config: RunConfig, placement: Placement) -> Iterator[Violation]:
    n_nodes, given, visible = config.cluster.n_nodes, config.cluster.n_gpus_per_node, visible_gpus(config)
    if visible and given is not None and given > visible:
        yield Violation("cluster.n_gpus_per_node", given, f"{visible} are visible here", f"Use at most {visible}")
    if not under_torchrun():
        if n_nodes > 1 and "SLURM_PROCID" not in os.environ:
            remedy = "Use scheduler.type=slurm or ray, or torchrun on every node"
            yield Violation("cluster.n_nodes", n_nodes, "scheduler.type=local starts one node", remedy)
        return
    world = int(os.environ["WORLD_SIZE"])
    if world != len(placement.trainer):
        problem = f"needs {len(placement.trainer)} trainer ranks, torchrun started {world}"
        remedy = f"Use --nproc-per-node {placement.ranks_per_node} on {len(placement.trainer_nodes)} node(s)"
        yield Violation("allocation_mode", config.allocation_mode, problem, remedy)
    if placement.spread and not config.rollout.engine_urls:
        problem = "puts engines on another node than rank 0, where torchrun starts none"
        remedy = "Use scheduler.type=slurm or ray, or name running engines in rollout.engine_urls"
        yield Violation("allocation_mode", config.allocation_mode, problem, remedy)
