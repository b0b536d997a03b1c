"""The placement of a configured run, and the values for it that the configuration leaves open."""

from __future__ import annotations

from dataclasses import replace

from tau2_lightning.config.allocation import Allocation
from tau2_lightning.config.schema import RunConfig

from .devices import device_count
from .placement import Placement, place
from .ranks import Job, trainer_node_index


def visible_gpus(config: RunConfig) -> int:
    """CUDA devices of this machine that the run may use."""
    forbidden = config.trainer.accelerator == "cpu" or config.cluster.n_gpus_per_node == 0
    return 0 if forbidden else device_count()


def gpus_per_node(config: RunConfig, allocation: Allocation) -> int:
    """GPUs of each node: ``cluster.n_gpus_per_node``, 0 for CPU and always 0 with ``trainer.accelerator=cpu``.

    When it is null, a local run has the GPUs that are visible here, and a cluster as many as the allocation needs.
    """
    given = config.cluster.n_gpus_per_node
    if config.trainer.accelerator == "cpu":
        return 0
    if given is not None:
        return given
    if config.scheduler.type == "local":
        return visible_gpus(config)
    return -(-allocation.world // config.cluster.n_nodes)


def placement_of(config: RunConfig) -> Placement:
    """The role of each device of each node. Raises AllocationError when the allocation does not fit the machines."""
    allocation = Allocation.parse(config.allocation_mode)
    gpus = gpus_per_node(config, allocation)
    counted = config.cluster.n_gpus_per_node is None and config.scheduler.type == "local"
    if counted and gpus == 1 and all(component.world == 1 for component in allocation.components):
        # On a machine with one GPU, components that need one device each share it.
        allocation = replace(allocation, groups=(allocation.components,))
    return place(allocation, config.cluster.n_nodes, gpus)


def trainer_accelerator(config: RunConfig) -> str:
    """``accelerator`` for the Lightning Trainer; its own choice could be a GPU although the run is placed on CPU."""
    on_cpu = config.trainer.accelerator == "auto" and placement_of(config).on_cpu
    return "cpu" if on_cpu else config.trainer.accelerator


def trainer_devices(config: RunConfig) -> tuple[int | list[int], int]:
    """``devices`` and ``num_nodes`` for the Lightning Trainer of this process."""
    placement = placement_of(config)
    nodes = placement.trainer_nodes
    if not visible_gpus(config):
        return placement.ranks_per_node, len(nodes)
    job = Job.current()
    node = job.node if job else nodes[min(trainer_node_index(), len(nodes) - 1)]
    return [place.local for place in placement.ranks_on(node)], len(nodes)
