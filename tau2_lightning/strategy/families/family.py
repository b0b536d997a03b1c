"""`Family`: the description of a model family that lets the strategy take its layers apart, split and replace them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Parts:
    """Dotted names of the parts of a causal LM, as in its parameter names."""

    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    rotary: str = "model.rotary_emb"
    norm: str = "model.norm"
    head: str = "lm_head"

    @property
    def tied(self) -> tuple[str, str]:
        """Names of the head's weight and of the embedding's, which a tied model stores once, as the embedding's."""
        return f"{self.head}.weight", f"{self.embedding}.weight"


@dataclass(frozen=True)
class TensorPlan:
    """How the modules of a decoder layer are split over tensor ranks. All are dotted names within the layer.

    ``columns`` are linear layers split by output features, ``rows`` by input features. ``norms`` compute a part of the
    positions or heads on each rank. ``gathers`` are the blocks whose input is gathered from all ranks, once for all
    their column layers; a block without column layers computes each rank's own positions. ``routers``, which choose the
    experts of a token, compute each rank's own positions too: their weights are whole on each rank, and their gradients
    are summed over the ranks. A name that a layer lacks is skipped.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    norms: tuple[str, ...]
    gathers: tuple[str, ...]
    routers: tuple[str, ...] = ()


@dataclass(frozen=True)
class RouterPlan:
    """The routers of a mixture-of-experts family whose choice can be replayed (`strategy.replay`).

    ``module`` is the dotted name of the router within a layer; it returns (logits [N, E], weights [N, k], chosen
    experts [N, k] int64). ``weigh(config, logits, chosen)`` makes the weights of any chosen experts, by the router's
    own formula. ``used`` returns k, from the model's configuration.
    """

    module: str
    weigh: Callable[[Any, Tensor, Tensor], Tensor]
    used: Callable[[Any], int]


@dataclass(frozen=True)
class ExpertPlan:
    """The experts of a mixture-of-experts family.

    ``module`` is the dotted name of the experts within a layer; layers that lack it are dense. ``split`` makes an
    `ExpertShard` of them, which holds one rank's experts under the same parameter names. ``count`` returns the number
    of experts, from the model's configuration. ``router`` is None if the engine's choice cannot be replayed.
    """

    module: str
    split: Callable[[Any, DeviceMesh], nn.Module]
    count: Callable[[Any], int]
    router: RouterPlan | None = None


def _stored_as_named(name: str, index: int) -> tuple[str, ...]:
    return ()


def _takes_all(config: Any) -> str | None:
    return None


def _as_is(layer: nn.Module) -> None:
    return None


@dataclass(frozen=True)
class Family:
    """A family of causal LMs whose logits are ``head(hidden states)`` and whose layers attend in the common way.

    The common way: ``layer.<attention>`` calls transformers' attention interface with the keyword arguments of the
    layer; layers with other attention have no module of that name. Unless ``own_projections`` is set, the attention has
    the projections ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj`` (and maybe norms ``q_norm``, ``k_norm`` of each head)
    and rotates whole queries and keys by halves, and all norms are ``x / rms(x) * weight`` with their epsilon in
    ``variance_epsilon``.

    ``layers_apart``: layers may be taken out of the model, as pipeline and context parallelism need. ``tensor`` is
    None if tensor parallelism is not provided. ``reasons`` says in one line why a letter of the allocation is not
    provided. ``refuses(config)`` returns why a model of this family cannot be trained at all, or None.
    ``fused`` names the tensors in the model's files that make up slice ``index`` of a parameter (joined along its first
    dimension), or nothing if the parameter is stored under its own name. ``layer_products`` is the number of
    multiplications of a layer for one token, in units of the hidden size.

    ``centred_norms``: norms are ``x / rms(x) * (1 + weight)``. ``rotary_kind``: if kinds of layers rotate differently,
    the dotted attribute of a layer that the rotary embedding takes as its third argument. ``embedding_scale`` returns
    the factor by which embeddings are multiplied. ``prepare`` changes a layer in place so that it keeps packed rows
    apart; layers need this if positions are connected by more than attention. ``no_adapters`` are linear layers on
    which the engine accepts no LoRA adapter, each with the reason. ``engine_imports`` are packages that vLLM's class of
    the family imports and that not every installation of vLLM has.
    """

    model_type: str
    layer_products: Callable[[Any], float]
    parts: Parts = field(default_factory=Parts)
    attention: str = "self_attn"
    layers_apart: bool = False
    tensor: TensorPlan | None = None
    experts: ExpertPlan | None = None
    fused: Callable[[str, int], tuple[str, ...]] = _stored_as_named
    reasons: Mapping[str, str] = field(default_factory=dict)
    refuses: Callable[[Any], str | None] = _takes_all
    own_projections: bool = False
    centred_norms: bool = False
    rotary_kind: str | None = None
    embedding_scale: Callable[[Any], float] | None = None
    prepare: Callable[[nn.Module], None] = _as_is
    no_adapters: Mapping[str, str] = field(default_factory=dict)
    engine_imports: tuple[str, ...] = ()

    @property
    def changes_layers(self) -> bool:
        """Whether attention is not all that connects positions."""
        return self.prepare is not _as_is
