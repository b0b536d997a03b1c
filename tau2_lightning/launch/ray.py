"""``scheduler.type=ray``: a placement group with one bundle for each node, and in each an actor with a node agent."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Any

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, DeadlineExceeded, InfrastructureFault, Tau2LightningError, Violation

from .cluster import placement_of
from .node import NodeTask, run_node
from .placement import Placement
from .run_folder import RunFolder

CONNECT_SECONDS = 10.0


class NodeActor:
    """The actor of one bundle; it starts the node's part of the run."""

    def run(self, task: NodeTask, node: int, placement: Placement) -> str:
        """See `run_node`. Returns the error's text, or "": Ray pickles errors, and ours cannot be unpickled."""
        import ray

        os.chdir(task.directory)
        try:
            run_node(task, node, placement, ray.util.get_node_ip_address())
        except Tau2LightningError as error:
            return str(error)
        return ""


def run(config: RunConfig, words: Sequence[str]) -> int:
    """Run on the Ray cluster at ``scheduler.ray_address`` and wait for the end; returns the exit code.

    Raises ConfigError when there is no cluster or it lacks the resources, InfrastructureFault when a rank fails.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    placement = placement_of(config)
    s = config.scheduler
    try:
        _reach(s.ray_address)
        ray.init(address=s.ray_address, logging_level=logging.WARNING, log_to_driver=True)
    except OSError as error:  # ConnectionError is one
        problem = f"no cluster there: {error}"
        remedy = "Start one with `ray start --head`, or set scheduler.ray_address"
        raise ConfigError([Violation("scheduler.ray_address", s.ray_address, problem, remedy)]) from error
    root = RunFolder.name(config)
    root.mkdir(parents=True, exist_ok=True)
    named = (*words, f"output_dir={config.output_dir.absolute()}", f"trial_name={root.name}")
    key, grace = secrets.token_urlsafe(24), config.trainer.grace_seconds
    task = NodeTask(f"ray-{secrets.token_hex(4)}", named, os.getcwd(), str(root), key, s.start_timeout, grace=grace)
    bundle = resources(config, placement)
    group = placement_group([bundle] * placement.n_nodes, strategy="STRICT_SPREAD")
    try:
        if not group.wait(timeout_seconds=s.start_timeout):
            doing = f"waiting for {placement.n_nodes} nodes with {bundle} each; ray status shows what there is"
            raise DeadlineExceeded("ray", s.start_timeout, doing)
        actors: list[Any] = []
        for node in range(placement.n_nodes):
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node)
            options = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "max_restarts": 0}
            actors.append(ray.remote(NodeActor).options(scheduling_strategy=strategy, **options).remote())
        print(f"running on {placement.n_nodes} node(s) of Ray; the run folder is {root}")
        waiting = [actor.run.remote(task, node, placement) for node, actor in enumerate(actors)]
        while waiting:
            ended, waiting = ray.wait(waiting, num_returns=1)
            if failure := ray.get(ended[0]):
                raise InfrastructureFault("ray", "node", failure)
        return 0
    except ray.exceptions.RayTaskError as error:
        raise InfrastructureFault("ray", "node", str(error)) from error
    except ray.exceptions.RayActorError as error:
        raise InfrastructureFault("ray", "node", f"a node is gone: {error}") from error
    finally:
        remove_placement_group(group)  # kills the actors; their watchdogs end what they started
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError when no process listens at ``host:port``; Ray itself would try for minutes and then end the
    process."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def resources(config: RunConfig, placement: Placement) -> dict[str, float]:
    """Resources of each node's bundle."""
    held: dict[str, float] = {"CPU": float(config.scheduler.cpus_per_node or 1)}
    if placement.gpus_per_node:
        held["GPU"] = float(placement.gpus_per_node)
    return held
