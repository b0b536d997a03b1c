"""Router replay (R3, arXiv:2510.11370): routers choose the experts that the engine chose, and weigh them themselves.

Engine and trainer round differently. If two experts have nearly equal scores, rounding decides which one a token
visits, and the log-probs of one policy then differ by much more than rounding. Only the choice is replayed: the weights
of the chosen experts come from the trainer's own router, so the router gets its gradient. A position without a recorded
choice keeps the router's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tau2_lightning.microbatch import RoutedExperts

from .families.family import ExpertPlan, RouterPlan
from .mesh import Mesh
from .modules import find

KEYWORD = "routed"


class Choices:
    """The recorded experts of this rank's part of a micro-batch, for ``layers`` (consecutive numbers), on its device.

    A layer gets them as the keyword argument `KEYWORD` of its forward. So activation checkpointing passes them to its
    second forward too.
    """

    def __init__(self, routed: RoutedExperts, layers: Sequence[int], mesh: Mesh) -> None:
        self.first = layers[0]
        held = routed.index[..., layers[0] : layers[-1] + 1, :]
        self.index = _own_positions(held, mesh).flatten(0, 1).to(mesh.device)
        self.known = _own_positions(routed.known, mesh).flatten()[:, None].to(mesh.device)

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """The experts of one layer, [N, k] int64, and whether they are known, [N, 1] bool."""
        return self.index[:, layer - self.first].long(), self.known


def _own_positions(x: Tensor, mesh: Mesh) -> Tensor:
    """This rank's positions of [B, T, ...]: context ranks cut the sequence, tensor ranks cut their part again."""
    for name, size in (("cp", mesh.spec.c), ("tp", mesh.spec.t)):
        if size > 1:
            x = x.chunk(size, dim=1)[mesh.coordinate(name)]
    return x


class ReplayedRouter:
    """Two hooks of a decoder layer: one takes the choices from the layer's keyword arguments, the other one makes its
    router use them."""

    def __init__(self, number: int, layer: nn.Module, router: nn.Module, plan: RouterPlan, config: Any) -> None:
        self.number, self.plan, self.config = number, plan, config
        self._given: tuple[Tensor, Tensor] | None = None
        layer.register_forward_pre_hook(self._take, with_kwargs=True)
        router.register_forward_hook(self._choose)

    def _take(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        choices: Choices | None = kwargs.get(KEYWORD)
        self._given = None if choices is None else choices.of(self.number)
        return args, {name: value for name, value in kwargs.items() if name != KEYWORD}

    def _choose(self, router: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._given is None:
            return output
        logits, _, own = output
        index, known = self._given
        self._given = None  # so that the micro-batch can be freed
        index = torch.where(known, index, own)
        return logits, self.plan.weigh(self.config, logits, index), index


def replay_experts(layers: Mapping[int, nn.Module], experts: ExpertPlan | None, config: Any) -> bool:
    """Make the routers of ``layers`` (by number) use recorded experts; returns whether this family's routers can.

    Layers without a router are dense. Without recorded experts the routers compute as before.
    """
    if experts is None or experts.router is None or not experts.count(config):
        return False
    for number, layer in layers.items():
        router = find(layer, experts.router.module)
        if router is not None:
            ReplayedRouter(number, layer, router, experts.router, config)
    return True


def check_recorded(routed: RoutedExperts, experts: ExpertPlan, config: Any) -> None:
    """Raise ValueError when the record is of a model with other layers or other experts than that of ``config``."""
    assert experts.router is not None
    recorded, own = tuple(routed.index.shape[2:]), (config.num_hidden_layers, experts.router.used(config))
    if recorded != own:
        raise ValueError(
            f"the engine recorded {recorded} (layers, experts per token), but the trainer's model has {own}"
        )
    if int(routed.index.max()) >= experts.count(config) or int(routed.index.min()) < 0:
        raise ValueError(f"the engine recorded an expert whose number is not below {experts.count(config)}")
