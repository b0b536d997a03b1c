"""Bring a causal LM into a layout: the part that one rank owns, the programs that compute with it, the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tau2_lightning.errors import ConfigError, Violation

from .attention import attend_within_rows, exchange_heads
from .balance import head_load, layers_of_stages
from .dropout import disable_dropout
from .elementwise import use_handwritten
from .expert_parallel import split_experts
from .export import Exporter, Origin
from .families.family import ExpertPlan, Family, Parts, TensorPlan
from .families.registry import family_of
from .fitting import can_pack, check_fits, splits_layers
from .gradients import SummedGradients
from .hf_files import ShardedLoader
from .layers import ActivationCheckpointing, checkpoint_activations, compile_layers
from .lora import AdapterPlan, BaseDtype, LoRASettings, attach_adapters, plan_adapters
from .mesh import Mesh
from .model import OwnedLayers, Stage, WholeModel, is_tied
from .modules import find
from .opening import narrow_parameters, open_model
from .parallelize import Precision, apply_fsdp, split_model, uses_fsdp
from .pipeline import Pipeline, check_schedule, stages_per_rank
from .replay import replay_experts
from .rotary import fix_frequencies


@dataclass(frozen=True)
class Options:
    """How a model is computed, whatever its layout.

    ``schedule`` matters when p > 1. ``precision`` "bf16" keeps parameters, gradients and reductions in float32 and
    computes in bfloat16 (see ``casts_parameters``). ``activation_checkpointing`` and ``compile_blocks`` are described
    in ``layers``. With ``lora`` only adapters are trained, beside frozen weights in ``base_dtype``.
    ``offload_params`` keeps parameters and gradients on the CPU where FSDP holds them; ``activation_offloading`` keeps
    there what backward needs (`activation_offloading`). With ``packing`` the rows of a micro-batch are computed side
    by side, without their padding, where the model's family is known; with ``tree_training`` too, tokens that they
    share are computed once, where `can_share` allows it. ``handwritten_elementwise`` computes norms and
    rotations by `elementwise`, on a CPU, without a compiler, where the family's attention is the common one.
    ``longest`` is the most tokens of a row (see `fix_frequencies`). Raises ConfigError for unknown names.
    """

    schedule: str = "1F1B"
    precision: Precision = "fp32"
    activation_checkpointing: ActivationCheckpointing = "none"
    compile_blocks: bool = False
    lora: LoRASettings | None = None
    base_dtype: BaseDtype = "float32"
    offload_params: bool = False
    activation_offloading: bool = False
    packing: bool = True
    tree_training: bool = True
    handwritten_elementwise: bool = False
    longest: int | None = None

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError([Violation("strategy.precision", self.precision, "unknown", "fp32 or bf16")])
        if self.narrow_base and self.precision != "bf16":
            problem = "frozen weights in bfloat16 cannot be computed with in float32"
            remedy = "Set actor.precision=bf16, or actor.lora.base_dtype=float32"
            raise ConfigError([Violation("actor.lora.base_dtype", self.base_dtype, problem, remedy)])

    @property
    def narrow_base(self) -> bool:
        """Whether frozen weights are kept in bfloat16."""
        return self.lora is not None and self.base_dtype == "bfloat16"

    def autocasts(self, mesh: Mesh) -> bool:
        """Whether bf16 is computed under autocast: where FSDP does not cast parameters."""
        return self.precision == "bf16" and not uses_fsdp(mesh.spec, self.precision, mesh.device)

    def handwrites(self, device: torch.device) -> bool:
        """Whether the handwritten norms and rotations are used on ``device``."""
        return self.handwritten_elementwise and device.type == "cpu" and not self.compile_blocks


@dataclass
class Assembly:
    """``model`` is this rank's part, its parameters under Hugging Face names; ``programs`` compute with it.

    ``partial`` are gradients that need a sum of their own. ``packs``: rows are computed without their padding.
    ``tied_copy`` is the head's weight where it repeats another stage's embedding. ``replays`` are the experts whose
    routers take recorded choices.
    """

    model: Any
    programs: list[nn.Module]
    exporter: Exporter
    packs: bool
    pipeline: Pipeline | None = None
    partial: list[SummedGradients] = field(default_factory=list)
    tied_copy: nn.Parameter | None = None
    replays: ExpertPlan | None = None


def assemble(source: str | Path | nn.Module, mesh: Mesh, options: Options) -> Assembly:
    """Bring a causal LM into the layout of ``mesh``. Collective. Raises ConfigError when it does not fit."""
    model, loader = open_model(source, mesh)
    if options.narrow_base:
        narrow_parameters(model)
    disable_dropout(model)
    check_fits(model.config, mesh.spec)
    fix_frequencies(model, options.longest)
    family = family_of(model.config)
    if family is not None and family.experts is not None:
        mesh = mesh.with_experts()
    checkpoint_activations(model, options.activation_checkpointing)
    adapters = plan_adapters(model, options.lora) if options.lora else None
    if mesh.experts is not None:
        assert family is not None
        assert family.experts is not None
        split_experts(find(model, family.parts.layers), family.experts.module, family.experts.split, mesh.experts["ep"])
    origin = Origin() if isinstance(source, nn.Module) else Origin(str(source), loader.served_as if loader else str)
    if splits_layers(model.config, mesh.spec):
        assert family is not None
        made = _staged(model, family, mesh, options, adapters, origin)
    else:
        made = _whole(model, family, mesh, options, adapters, origin)
    if loader is None:
        made.model.to(mesh.device)
    else:
        loader.bind(made.model)
    _wrap(made, model._no_split_modules or (), mesh, options, loader)
    if mesh.spec.p > 1:
        _add_pipeline(made, mesh, options)
    if mesh.spec.t > 1 and family is not None and family.tensor is not None:
        _sum_routers(made, family.tensor, mesh)
    return made


def _sum_routers(made: Assembly, plan: TensorPlan, mesh: Mesh) -> None:
    """Sum the gradients of routers over t, where every rank routes its own positions."""
    group = mesh.group("tp")
    assert group is not None
    ends = tuple(f".{name}" for name in plan.routers)
    routers = [module for name, module in made.model.named_modules() if name.endswith(ends)] if ends else []
    held = [parameter for module in routers for parameter in module.parameters() if parameter.requires_grad]
    if held:
        made.partial.append(SummedGradients(held, group))


def _whole(
    model: Any, family: Family | None, mesh: Mesh, options: Options, adapters: AdapterPlan | None, origin: Origin
) -> Assembly:
    """All layers in one program."""
    exporter = Exporter(model, lambda name: 0, adapters, mesh, origin)
    _attach(adapters, model, mesh)
    program = WholeModel(model, mesh)
    made = Assembly(model, [program], exporter, options.packing and can_pack(model.config))
    if family is not None and can_pack(model.config):
        layers = list(find(model, family.parts.layers))
        _use_our_layers(model, family, layers, mesh, options)
        program.replays = _replay(made, dict(enumerate(layers)), family)
    elif mesh.spec.c > 1:
        exchange_heads(model, mesh.group("cp"))
    return made


def _staged(
    model: Any, family: Family, mesh: Mesh, options: Options, adapters: AdapterPlan | None, origin: Origin
) -> Assembly:
    """Keep the layers this rank owns, split them, and make its stages."""
    ranks, rank = mesh.spec.p, mesh.coordinate("pp")
    total = ranks * _stages_of_each(mesh, options)
    layers = layers_of_stages(model.config.num_hidden_layers, total, head_load(model.config, family))
    if not all(layers):
        problem = f"{total} stages for {model.config.num_hidden_layers} layers"
        raise ConfigError([Violation("allocation_mode", str(mesh.spec), problem, "Lower p or use 1F1B")])
    owner = {str(layer): stage % ranks for stage, group in enumerate(layers) for layer in group}
    exporter = Exporter(model, lambda name: _owner(name, owner, family.parts, ranks), adapters, mesh, origin)
    mine = range(rank, total, ranks)
    held = [layer for stage in mine for layer in layers[stage]]
    first, last = 0 in mine, total - 1 in mine
    kept = [find(model, family.parts.layers)[index] for index in held]
    split_model(model, family, kept, first, last, mesh)
    _use_our_layers(model, family, kept, mesh, options)
    owned = OwnedLayers(model, family, held, first, last)
    _attach(adapters, owned, mesh)
    made = Assembly(owned, [], exporter, options.packing and can_pack(owned.config))
    replays = _replay(made, dict(zip(held, kept, strict=True)), family)
    for index in mine:
        stage = Stage(owned, layers[index], index == 0, index == total - 1, mesh)
        stage.autocast, stage.replays = options.autocasts(mesh), replays
        made.programs.append(stage)
    return made


def _replay(made: Assembly, layers: Mapping[int, nn.Module], family: Family) -> bool:
    """Make the routers of ``layers`` (by number) use recorded experts; returns whether they can."""
    found = replay_experts(layers, family.experts, made.model.config)
    made.replays = family.experts if found else None
    return found


def _use_our_layers(model: Any, family: Family, layers: list[nn.Module], mesh: Mesh, options: Options) -> None:
    attend_within_rows(model.config, layers, family.attention, mesh.group("cp"))
    for layer in layers:
        family.prepare(layer)
    if options.handwrites(mesh.device) and not family.own_projections:
        use_handwritten(model, layers, family.attention)


def _wrap(made: Assembly, blocks: Sequence[str], mesh: Mesh, options: Options, loader: ShardedLoader | None) -> None:
    """Compile the layers (classes named in ``blocks``) and shard parameters, as configured; allocate parameters that
    have no memory yet."""
    if options.compile_blocks:
        compile_layers([m for m in made.model.modules() if type(m).__name__ in blocks], mesh.device)
    if uses_fsdp(mesh.spec, options.precision, mesh.device):
        offload, thrifty = options.offload_params, options.narrow_base
        bf16 = options.precision == "bf16"
        apply_fsdp(made.programs, blocks, mesh, bf16=bf16, loader=loader, offload=offload, thrifty=thrifty)
    if loader is not None:
        loader.fill(made.model.parameters())
        loader.files.close()


def _stages_of_each(mesh: Mesh, options: Options) -> int:
    return stages_per_rank(options.schedule) if mesh.spec.p > 1 else 1


def _add_pipeline(made: Assembly, mesh: Mesh, options: Options) -> None:
    owned, ranks = made.model, mesh.spec.p
    if is_tied(owned.config) and mesh.ends is not None:
        _join_tied(made, mesh.ends)
    casts = options.precision == "bf16" and not options.autocasts(mesh)
    dtype = torch.bfloat16 if casts else next(owned.parameters()).dtype
    total = ranks * _stages_of_each(mesh, options)
    stages: dict[int, Any] = dict(zip(range(mesh.coordinate("pp"), total, ranks), made.programs, strict=True))
    made.pipeline = Pipeline(stages, total, mesh, options.schedule, owned.config.hidden_size, dtype)


def _join_tied(made: Assembly, ends: dist.ProcessGroup) -> None:
    """Sum the gradients of a tied embedding that the first and the last stage hold, over the group of both."""
    embedding, head = made.model.embedding, made.model.head
    if embedding is None and head is not None:
        made.tied_copy = head.weight
    holder = embedding if embedding is not None else head
    if holder is not None and holder.weight.requires_grad:
        made.partial.append(SummedGradients([holder.weight], ends))


def _attach(adapters: AdapterPlan | None, part: nn.Module, mesh: Mesh) -> None:
    if adapters is not None:
        split = mesh.device_mesh["tp"] if mesh.device_mesh is not None and mesh.spec.t > 1 else None
        attach_adapters(part, adapters, split, mesh.device)


def _owner(name: str, layer_owner: dict[str, int], parts: Parts, ranks: int) -> int:
    """The pipeline rank that owns the parameter called ``name``."""
    if name.startswith(f"{parts.layers}."):
        return layer_owner[name.removeprefix(f"{parts.layers}.").split(".")[0]]
    return 0 if name.startswith(f"{parts.embedding}.") else ranks - 1
