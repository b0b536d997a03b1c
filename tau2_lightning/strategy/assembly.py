"""A causal LM brought into a layout: what one rank owns of it, the programs over that, and how they run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tau2_lightning.errors import ConfigError, Violation

from .attention import exchange_heads, use_own_layers
from .expert_parallel import ExpertGradients, SplitExperts, split_experts
from .export import Exporter
from .fitting import check_fits, splits_layers
from .gradients import TiedGradient
from .layers import ActivationCheckpointing, checkpoint_activations, compile_layers
from .lora import AdapterPlan, LoRASettings, attach_adapters, plan_adapters
from .mesh import Mesh
from .model import OwnedLayers, Stage, WholeModel, can_pack, head_load, is_tied, layers_of_stages, open_model
from .parallelize import Precision, apply_fsdp, split_model, uses_fsdp
from .pipeline import Pipeline, check_schedule, stages_per_rank


@dataclass(frozen=True)
class Options:
    """How a model is computed, whatever its layout.

    ``schedule`` matters when p > 1. ``precision`` "bf16" keeps parameters, gradients and reductions in float32 and
    computes in bfloat16 (see ``casts_parameters``). ``activation_checkpointing`` and ``compile_blocks`` are described
    in ``layers``. With ``lora`` only adapters are trained. With ``packing`` the rows of a micro-batch are computed side
    by side, without their padding, where the model's attention is known. Raises ConfigError for unknown names.
    """

    schedule: str = "1F1B"
    precision: Precision = "fp32"
    activation_checkpointing: ActivationCheckpointing = "none"
    compile_blocks: bool = False
    lora: LoRASettings | None = None
    packing: bool = True

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError([Violation("strategy.precision", self.precision, "unknown", "fp32 or bf16")])

    def autocasts(self, mesh: Mesh) -> bool:
        """Whether bf16 is computed under autocast: where FSDP does not cast parameters."""
        return self.precision == "bf16" and not uses_fsdp(mesh.spec, self.precision, mesh.device)


@dataclass
class Assembly:
    """``model`` is this rank's part, its parameters under Hugging Face names; ``programs`` compute with it.

    ``partial`` are gradients that need a sum of their own. ``holds_tied_copy``: the head repeats another stage's
    embedding. ``packs``: rows are computed without their padding.
    """

    model: Any
    programs: list[nn.Module]
    exporter: Exporter
    packs: bool
    pipeline: Pipeline | None = None
    partial: list[TiedGradient | ExpertGradients] = field(default_factory=list)
    holds_tied_copy: bool = False


def assemble(source: str | Path | nn.Module, mesh: Mesh, options: Options) -> Assembly:
    """Bring a causal LM into the layout of ``mesh``. Collective. Raises ConfigError when it does not fit."""
    model, loader = open_model(source, mesh)
    check_fits(model, mesh.spec)
    checkpoint_activations(model, options.activation_checkpointing)
    adapters = plan_adapters(model, options.lora) if options.lora else None
    if mesh.experts is not None:
        split_experts(list(model.model.layers), mesh.experts["ep"])
    origin = "" if isinstance(source, nn.Module) else str(source)
    make = _staged if splits_layers(model.config, mesh.spec) else _whole
    made = make(model, mesh, options, adapters, origin)
    if loader is None:
        made.model.to(mesh.device)
    else:
        loader.bind(made.model)
    blocks = model._no_split_modules or ()
    if options.compile_blocks:
        compile_layers([m for m in made.model.modules() if type(m).__name__ in blocks], mesh.device)
    if uses_fsdp(mesh.spec, options.precision, mesh.device):
        apply_fsdp(made.programs, blocks, mesh, bf16=options.precision == "bf16", loader=loader)
    if loader is not None:
        loader.fill(made.model.parameters(), cut=False)
        loader.files.close()
    if mesh.spec.p > 1:
        _add_pipeline(made, mesh, options)
    if mesh.experts is not None and mesh.experts["rest"].size() > 1:
        held = [m for m in made.model.modules() if isinstance(m, SplitExperts)]
        shared = [parameter for module in held for parameter in module.parameters() if parameter.requires_grad]
        made.partial.append(ExpertGradients(shared, mesh.experts["rest"].get_group()))
    return made


def _whole(model: Any, mesh: Mesh, options: Options, adapters: AdapterPlan | None, origin: str) -> Assembly:
    """All layers in one program."""
    exporter = Exporter(model, lambda name: 0, adapters, mesh, origin)
    _attach(adapters, model, mesh)
    known = can_pack(model.config)
    if known:
        use_own_layers(model, list(model.model.layers), mesh.group("cp"))
    elif mesh.spec.c > 1:
        exchange_heads(model, mesh.group("cp"))
    return Assembly(model, [WholeModel(model, mesh)], exporter, options.packing and known)


def _staged(model: Any, mesh: Mesh, options: Options, adapters: AdapterPlan | None, origin: str) -> Assembly:
    """Keep the layers this rank owns, split them, and make its stages."""
    ranks, rank = mesh.spec.p, mesh.coordinate("pp")
    total = ranks * _stages_of_each(mesh, options)
    layers = layers_of_stages(model.config.num_hidden_layers, total, head_load(model.config))
    if not all(layers):
        problem = f"{total} stages for {model.config.num_hidden_layers} layers"
        raise ConfigError([Violation("allocation_mode", str(mesh.spec), problem, "Lower p or use 1F1B")])
    owner = {str(layer): stage % ranks for stage, group in enumerate(layers) for layer in group}
    exporter = Exporter(model, lambda name: _owner(name, owner, ranks), adapters, mesh, origin)
    mine = range(rank, total, ranks)
    held = [layer for stage in mine for layer in layers[stage]]
    first, last = 0 in mine, total - 1 in mine
    split_model(model, held, first, last, mesh, tied=is_tied(model.config))
    owned = OwnedLayers(model, held, first, last)
    _attach(adapters, owned, mesh)
    stages: list[nn.Module] = []
    for index in mine:
        stage = Stage(owned, layers[index], index == 0, index == total - 1, mesh)
        stage.autocast = options.autocasts(mesh)
        stages.append(stage)
    return Assembly(owned, stages, exporter, options.packing and can_pack(owned.config))


def _stages_of_each(mesh: Mesh, options: Options) -> int:
    return stages_per_rank(options.schedule) if mesh.spec.p > 1 else 1


def _add_pipeline(made: Assembly, mesh: Mesh, options: Options) -> None:
    owned, ranks = made.model, mesh.spec.p
    if is_tied(owned.config) and mesh.ends is not None:
        embed, head = getattr(owned.model, "embed_tokens", None), getattr(owned, "lm_head", None)
        weight = embed.weight if embed is not None else head.weight if head is not None else None
        made.holds_tied_copy = embed is None and head is not None
        if weight is not None and weight.requires_grad:
            made.partial.append(TiedGradient(weight, mesh.ends))
    casts = options.precision == "bf16" and not options.autocasts(mesh)
    dtype = torch.bfloat16 if casts else next(owned.parameters()).dtype
    total = ranks * _stages_of_each(mesh, options)
    stages: dict[int, Any] = dict(zip(range(mesh.coordinate("pp"), total, ranks), made.programs, strict=True))
    made.pipeline = Pipeline(stages, total, mesh, options.schedule, owned.config.hidden_size, dtype)


def _attach(adapters: AdapterPlan | None, part: nn.Module, mesh: Mesh) -> None:
    if adapters is not None:
        split = mesh.device_mesh["tp"] if mesh.device_mesh is not None and mesh.spec.t > 1 else None
        attach_adapters(part, adapters, split, mesh.device)


def _owner(name: str, layer_owner: dict[str, int], ranks: int) -> int:
    if name.startswith("model.layers."):
        return layer_owner[name.split(".")[2]]
    return 0 if name.startswith("model.embed_tokens.") else ranks - 1
