"""The placement table: the role of each device of each node. ``mode=plan`` shows it, and every start follows it."""

from __future__ import annotations

from dataclasses import dataclass

from tau2_lightning.config.allocation import Allocation, AllocationError, Component

USER = "user"  # the name of the component whose devices play the user: vllm[user]:d1


@dataclass(frozen=True)
class Place:
    """One device, or on CPU one process: rank ``rank`` of ``component``, device ``local`` of node ``node``."""

    node: int
    local: int
    component: Component
    rank: int

    @property
    def coordinates(self) -> str:
        """The rank's position in the mesh of its component, the slowest dimension first: ``p0 d1 c0 t0``.

        Where experts are spread, ``e2`` follows: the rank's place among the ranks that together hold all experts.
        """
        rank, parts = self.rank, []
        experts = self.component.experts
        if experts > 1:
            parts.append(f"e{rank % experts}")
        for name in reversed("dpt" if self.component.generates else "pdct"):
            size = getattr(self.component.spec, name)
            parts.append(f"{name}{rank % size}")
            rank //= size
        return " ".join(reversed(parts))


@dataclass(frozen=True)
class ServerPlace:
    """Where one engine server runs. ``devices`` are GPU indices among those of its node; empty on CPU."""

    node: int
    devices: tuple[int, ...]


@dataclass(frozen=True)
class Placement:
    """The places of all components. ``gpus_per_node`` 0 means CPU: places are processes, any number on a node."""

    allocation: Allocation
    n_nodes: int
    gpus_per_node: int
    places: tuple[Place, ...]

    @property
    def on_cpu(self) -> bool:
        return self.gpus_per_node == 0

    def servers(self, component: Component | None) -> tuple[ServerPlace, ...]:
        """The servers of an inference component, in order; none for None."""
        if component is None:
            return ()
        mine = [place for place in self.places if place.component is component]
        size = component.world // component.spec.d
        return tuple(
            ServerPlace(group[0].node, () if self.on_cpu else tuple(place.local for place in group))
            for group in (mine[start : start + size] for start in range(0, len(mine), size))
        )

    @property
    def engines(self) -> tuple[ServerPlace, ...]:
        """Where the policy's engines run."""
        return self.servers(self.allocation.generation)

    @property
    def user(self) -> Component | None:
        """The component named ``user``, on which ``econfig.user_engine`` runs; None without one."""
        return next((one for one in self.allocation.components if one.generates and one.name == USER), None)

    @property
    def user_engine(self) -> str:
        """The engine that plays the user where the run starts one: its component's, without one the policy's."""
        return self.user.backend if self.user else self.allocation.engine

    @property
    def trainer(self) -> tuple[Place, ...]:
        """The trainer's ranks in order."""
        return tuple(place for place in self.places if place.component is self.allocation.training)

    @property
    def trainer_nodes(self) -> tuple[int, ...]:
        """Nodes with trainer ranks, in order of rank. Rank 0 plays the episodes on the first one."""
        return tuple(dict.fromkeys(place.node for place in self.trainer))

    @property
    def ranks_per_node(self) -> int:
        """Trainer ranks on each of ``trainer_nodes``."""
        return len(self.trainer) // len(self.trainer_nodes)

    def ranks_on(self, node: int) -> tuple[Place, ...]:
        """The trainer ranks of one node, in the order of their local ranks."""
        return tuple(place for place in self.trainer if place.node == node)

    @property
    def spread(self) -> bool:
        """Whether an engine runs on another node than rank 0."""
        home = self.trainer_nodes[0] if self.trainer else 0
        return any(server.node != home for server in (*self.engines, *self.servers(self.user)))


MOST_DEVICES = 16_384  # every rank is placed and listed: a slip of the keyboard would take minutes


def place(allocation: Allocation, n_nodes: int = 1, gpus_per_node: int = 0) -> Placement:
    """Place the components of ``allocation`` on ``n_nodes`` nodes.

    With GPUs, the components of a group share devices, and the groups take the devices of node 0, node 1, ... one after
    another. On CPU (``gpus_per_node`` 0), the trainer's ranks are divided over all nodes, and engines run on the first
    node, beside rank 0. Raises AllocationError when there are too few devices, when an engine or a tensor group would
    cross nodes, when nodes would hold different numbers of trainer ranks, or when there are more than `MOST_DEVICES`
    devices.
    """
    for group in allocation.groups:
        if group[0].world > MOST_DEVICES:
            problem, allowed = f"needs {group[0].world} devices", f"At most {MOST_DEVICES}; is a digit too many?"
            raise AllocationError(allocation.text, group[0].position, problem, allowed)
    if gpus_per_node:
        allocation.check_cluster(n_nodes, gpus_per_node)
    places: list[Place] = []
    start = 0
    for group in allocation.groups:
        for component in group:
            if gpus_per_node:
                places += _on_gpus(component, start, gpus_per_node)
            else:
                places += _on_cpus(component, n_nodes, allocation)
        start += group[0].world
    placed = Placement(allocation, n_nodes, gpus_per_node, tuple(places))
    _check(placed)
    return placed


def _on_gpus(component: Component, start: int, gpus_per_node: int) -> list[Place]:
    devices = range(start, start + component.world)
    return [Place(*divmod(device, gpus_per_node), component, rank) for rank, device in enumerate(devices)]


def _on_cpus(component: Component, n_nodes: int, allocation: Allocation) -> list[Place]:
    if component.generates:
        return [Place(0, rank, component, rank) for rank in range(component.world)]
    each, rest = divmod(component.world, n_nodes)
    if rest:
        problem = f"its {component.world} trainer ranks do not divide over {n_nodes} nodes"
        raise _error(allocation, component, problem, "Use a multiple of cluster.n_nodes")
    return [Place(*divmod(rank, each), component, rank) for rank in range(component.world)]


def _check(placed: Placement) -> None:
    for component in placed.allocation.components:
        mine = [place for place in placed.places if place.component is component]
        size = component.world // component.spec.d if component.generates else component.spec.t
        for start in range(0, len(mine), size):
            if len({place.node for place in mine[start : start + size]}) > 1:
                unit = "engine" if component.generates else "tensor group"
                problem = f"{unit} {start // size} of {component} would lie on two nodes"
                remedy = f"Let sizes fill whole nodes of {placed.gpus_per_node}"
                raise _error(placed.allocation, component, problem, remedy)
    counts = {node: len(placed.ranks_on(node)) for node in placed.trainer_nodes}
    if len(set(counts.values())) > 1:
        held = ", ".join(f"{count} on node {node}" for node, count in counts.items())
        assert placed.allocation.training is not None
        problem = f"its trainer ranks are divided unevenly: {held}"
        raise _error(placed.allocation, placed.allocation.training, problem, "Each node needs as many as the others")


def _error(allocation: Allocation, component: Component, problem: str, allowed: str) -> AllocationError:
    return AllocationError(allocation.text or str(allocation), component.position, problem, allowed)
