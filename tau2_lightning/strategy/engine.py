"""The trainer's numerics without Lightning: a causal LM under a (pp, dp, cp, tp) layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tau2_lightning.allocation import Allocation, AllocationError, Component, ParallelSpec
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.strategy import parallelize as parallel
from tau2_lightning.strategy.attention import exchange_heads, use_attention
from tau2_lightning.strategy.expert_parallel import ExpertGradients, SplitExperts, split_experts
from tau2_lightning.strategy.export import Exporter
from tau2_lightning.strategy.gradients import TiedGradient, scale, total_norm
from tau2_lightning.strategy.inputs import TokenInputs
from tau2_lightning.strategy.layers import ActivationCheckpointing, checkpoint_activations, compile_layers
from tau2_lightning.strategy.lora import (
    AdapterPlan,
    LoRASettings,
    adapters_off,
    attach_adapters,
    plan_adapters,
)
from tau2_lightning.strategy.mesh import Mesh, is_maximum
from tau2_lightning.strategy.model import (
    SPLITTABLE,
    OwnedLayers,
    Stage,
    WholeModel,
    can_exchange,
    can_pack,
    can_split,
    head_load,
    is_tied,
    layers_of_stages,
    open_model,
)
from tau2_lightning.strategy.outputs import ForwardOutput, LossFn, MicroBatch, TokenOutputs
from tau2_lightning.strategy.pipeline import OnOutput, Pipeline, check_schedule, stages_per_rank

Precision = Literal["fp32", "bf16"]


class ArchonEngine:
    """Owns the parallel model of this process. `ArchonStrategy` is its face inside Lightning.

    ``schedule`` matters when p > 1. ``precision`` "bf16" keeps parameters, gradients and reductions in float32 and
    computes in bfloat16 (see ``casts_parameters``). ``activation_checkpointing`` and ``compile_blocks`` are
    described in ``layers``. With ``lora`` only adapters are trained. ``replicate`` is the number of copies of the
    parameters over the d x c ranks: 1 shards them over all, d x c repeats them on each, what lies between is
    hybrid. With ``packing`` the rows of a micro-batch are computed side by side, without their padding, where the
    model's attention is known (see ``packs``). Raises ConfigError for what cannot run.
    """

    def __init__(
        self,
        spec: ParallelSpec,
        *,
        schedule: str = "1F1B",
        precision: Precision = "fp32",
        activation_checkpointing: ActivationCheckpointing = "none",
        compile_blocks: bool = False,
        lora: LoRASettings | None = None,
        replicate: int = 1,
        packing: bool = True,
    ) -> None:
        check_schedule(schedule)
        if precision not in ("fp32", "bf16"):
            raise ConfigError([Violation("strategy.precision", precision, "unknown", "fp32 or bf16")])
        if replicate < 1 or spec.d * spec.c % replicate:
            problem = f"does not divide the {spec.d * spec.c} ranks that d and c make"
            raise ConfigError([Violation("actor.fsdp.replicate", replicate, problem, "Use a divisor; 1 shards all")])
        self.spec, self.schedule, self.precision = spec, schedule, precision
        self.activation_checkpointing, self.compile_blocks, self.replicate = (
            activation_checkpointing, compile_blocks, replicate
        )  # fmt: skip
        self.lora, self.packing = lora, packing
        self.adapters: AdapterPlan | None = None
        self.mesh, self._casts = Mesh(spec, torch.device("cpu")), False
        self.model: Any = None
        self._programs: list[nn.Module] = []
        self._stages: dict[int, Any] = {}
        self._total_stages = 1
        self._pipeline: Pipeline | None = None
        self._tied = False
        self._partial: list[TiedGradient | ExpertGradients] = []  # gradients that need a sum of their own
        self._exporter: Exporter | None = None

    def connect(self, device: torch.device) -> None:
        """Lay out the mesh over the default process group (none is needed for one process). Collective."""
        self._casts = casts_parameters(self.precision, device)
        alone = self._casts and self.spec.world == 1
        self.mesh = Mesh.alone(self.spec, device) if alone else Mesh.build(self.spec, device, self.replicate)

    # -- building ---------------------------------------------------------------------------------------------------

    def parallelize(self, source: str | Path | nn.Module) -> nn.Module:
        """Bring a causal LM into the layout and return this rank's part, its parameters under Hugging Face names.

        The returned module is for optimizers and checkpoints; it is not called. Raises ConfigError when the model
        does not fit the layout.
        """
        model, loader = open_model(source, self.mesh)
        self._check(model)
        origin = "" if isinstance(source, nn.Module) else str(source)
        checkpoint_activations(model, self.activation_checkpointing)
        self.adapters = plan_adapters(model, self.lora) if self.lora else None
        self._programs, self._pipeline, self._tied, self._stages, self._partial = [], None, False, {}, []
        if self.mesh.experts is not None:
            split_experts(list(model.model.layers), self.mesh.experts["ep"])
        if self._splits_layers(model.config):
            self.model = self._staged(model, origin)
        else:
            self._exporter = Exporter(model, lambda name: 0, self.adapters, self.mesh, origin)
            self.model = model
            self._attach(model)
            if self.packs:
                use_attention(model.config, list(model.model.layers), self.mesh.group("cp"))
            elif self.spec.c > 1:
                exchange_heads(model, self.mesh.group("cp"))
            self._programs = [WholeModel(model, self.mesh)]
        if loader is None:
            self.model.to(self.mesh.device)
        else:
            loader.bind(self.model)
        blocks = model._no_split_modules or ()
        if self.compile_blocks:
            compile_layers([m for m in self.model.modules() if type(m).__name__ in blocks], self.mesh.device)
        if self._uses_fsdp:
            parallel.apply_fsdp(self._programs, blocks, self.mesh, bf16=self.precision == "bf16", loader=loader)
        if loader is not None:
            loader.fill(self.model.parameters(), cut=False)
            loader.files.close()
        if self.spec.p > 1:
            self._build_pipeline()
        if self.mesh.experts is not None and self.mesh.experts["rest"].size() > 1:
            held = [m for m in self.model.modules() if isinstance(m, SplitExperts)]
            shared = [parameter for module in held for parameter in module.parameters() if parameter.requires_grad]
            self._partial.append(ExpertGradients(shared, self.mesh.experts["rest"].get_group()))
        return self.model

    def _attach(self, part: nn.Module) -> None:
        if self.adapters is not None:
            split = self.mesh.device_mesh["tp"] if self.mesh.device_mesh is not None and self.spec.t > 1 else None
            attach_adapters(part, self.adapters, split, self.mesh.device)

    def _staged(self, model: Any, origin: str) -> OwnedLayers:
        """Keep the layers this rank owns, split them, and make its stages."""
        ranks, rank, tied = self.spec.p, self.mesh.coordinate("pp"), is_tied(model.config)
        total = ranks * (stages_per_rank(self.schedule) if ranks > 1 else 1)
        layers = layers_of_stages(model.config.num_hidden_layers, total, head_load(model.config))
        if not all(layers):
            problem = f"{total} stages for {model.config.num_hidden_layers} layers"
            raise ConfigError([Violation("allocation_mode", str(self.spec), problem, "Lower p or use 1F1B")])
        owner = {str(layer): stage % ranks for stage, group in enumerate(layers) for layer in group}
        self._exporter = Exporter(model, lambda name: _owner(name, owner, ranks), self.adapters, self.mesh, origin)
        mine = range(rank, total, ranks)
        held = [layer for stage in mine for layer in layers[stage]]
        first, last = 0 in mine, total - 1 in mine
        parallel.split_model(model, held, first, last, self.mesh, tied=tied)
        owned = OwnedLayers(model, held, first, last)
        self._attach(owned)
        for index in mine:
            stage = Stage(owned, layers[index], index == 0, index == total - 1, self.mesh)
            stage.autocast = self.precision == "bf16" and not self._uses_fsdp
            self._programs.append(stage)
        self._stages = dict(zip(mine, self._programs, strict=True))
        self._total_stages = total
        return owned

    def _build_pipeline(self) -> None:
        owned = self.model
        if is_tied(owned.config) and self.mesh.ends is not None:
            embed = getattr(owned.model, "embed_tokens", None)
            weight = embed.weight if embed is not None else owned.lm_head.weight if hasattr(owned, "lm_head") else None
            self._tied = weight is not None
            if weight is not None and weight.requires_grad:
                self._partial.append(TiedGradient(weight, self.mesh.ends))
        sharded_bf16 = self.precision == "bf16" and self._uses_fsdp
        dtype = torch.bfloat16 if sharded_bf16 else next(owned.parameters()).dtype
        size = owned.config.hidden_size
        self._pipeline = Pipeline(self._stages, self._total_stages, self.mesh, self.schedule, size, dtype)

    @property
    def packs(self) -> bool:
        """Whether rows are computed without their padding: asked for, and this model's attention allows it."""
        return self.packing and self.model is not None and can_pack(self.model.config)

    @property
    def _uses_fsdp(self) -> bool:
        # Also for t alone: otherwise plain and distributed parameters mix, which foreach optimizers refuse.
        return self.spec.d * self.spec.c > 1 or self.spec.t > 1 or self._casts

    def _splits_layers(self, config: Any) -> bool:
        """Whether layers are taken out of the model: for p and t, and for c where their structure is known."""
        return self.spec.p * self.spec.t > 1 or (self.spec.c > 1 and can_split(config, tensor=False))

    def _check(self, model: Any) -> None:
        config, spec = model.config, self.spec
        if self._splits_layers(config) and not can_split(config, tensor=spec.t > 1):
            problem = f"layers of {config.model_type!r} models cannot be split over p or t"
            remedy = (
                f"Use d (and c where attention allows); p and t know {', '.join(SPLITTABLE)} without sliding windows"
            )
            raise ConfigError([Violation("allocation_mode", str(spec), problem, remedy)])
        if spec.c > 1 and not self._splits_layers(config) and not can_exchange(model):
            problem = f"c cannot cut sequences of {config.model_type!r} models: their attention is not the common one"
            raise ConfigError([Violation("allocation_mode", str(spec), problem, "Use d only")])
        try:
            Allocation(((Component("archon", self.spec),),)).check_model(
                num_layers=config.num_hidden_layers,
                num_heads=config.num_attention_heads,
                num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
                num_experts=getattr(config, "num_experts", 0) or 0,
                model=config.model_type,
            )
        except AllocationError as error:
            raise ConfigError([Violation("allocation_mode", str(self.spec), error.problem, error.allowed)]) from error

    # -- computing --------------------------------------------------------------------------------------------------

    def forward_backward(
        self, microbatches: Sequence[MicroBatch], loss_fn: LossFn, *, train: bool = True, temperature: float = 1.0
    ) -> ForwardOutput:
        """Run every micro-batch; with ``train`` accumulate gradients, summed over data ranks. Collective.

        ``loss_fn(outputs, microbatch) -> (loss, metrics)`` divides by global counts itself. Data ranks may bring
        different numbers and shapes of micro-batches; the ranks of one data rank bring the same. No step is taken
        and nothing is zeroed.
        """
        sums: dict[str, Tensor] = {"loss": torch.zeros((), device=self.mesh.device)}

        def on_output(index: int, found: Tensor) -> Tensor:
            outputs = feed[index].outputs(found)
            loss, metrics = loss_fn(outputs, batches[index])
            if train and not loss.requires_grad:
                loss = loss + 0.0 * outputs.logprobs.sum()  # every rank must take part in the backward collectives
            for name, value in (("loss", loss), *((f"metric/{name}", value) for name, value in metrics.items())):
                value = value.detach().float()
                if self.mesh.coordinate("cp") == 0:  # context ranks compute the same loss; count it once
                    known = sums.get(name)
                    if known is not None:
                        value = torch.maximum(known, value) if is_maximum(name) else known + value
                    sums[name] = value
            return loss

        with self._session():
            feed = [self._inputs(mb) for mb in microbatches]
            batches = [self._to_device(mb) for mb in microbatches]
            for partial in self._partial if train else ():
                partial.set_aside()
            self._run(feed, on_output, train, temperature)
            for partial in self._partial if train else ():
                partial.combine()
        total = self.mesh.sum_scalars(sums)
        metrics = {name.removeprefix("metric/"): value for name, value in total.items() if name != "loss"}
        return ForwardOutput(total["loss"], metrics)

    def token_outputs(self, microbatches: Sequence[MicroBatch], *, temperature: float = 1.0) -> list[TokenOutputs]:
        """Log-probs and entropy of every micro-batch, without gradients, on every rank that brought it. Collective."""
        found: dict[int, TokenOutputs] = {}

        def on_output(index: int, result: Tensor) -> Tensor:
            found[index] = feed[index].outputs(result.detach())
            return result.sum() * 0.0

        with self._session():
            feed = [self._inputs(mb) for mb in microbatches]
            self._run(feed, on_output, False, temperature)
        group = self.mesh.group("pp")
        if group is None or not feed:
            return [found[index] for index in range(len(feed))]
        sizes = [mb["input_ids"].shape for mb in microbatches]
        flat = torch.zeros(sum(size.numel() for size in sizes), 2, device=self.mesh.device)
        if found:
            every = [torch.stack([found[i].logprobs, found[i].entropy], -1).flatten(0, 1) for i in range(len(feed))]
            flat = torch.cat(every)
        dist.broadcast(flat, group=group, group_src=self.spec.p - 1)
        parts = flat.split([size.numel() for size in sizes])
        return [
            TokenOutputs(part[:, 0].reshape(size), part[:, 1].reshape(size))
            for part, size in zip(parts, sizes, strict=True)
        ]

    def _run(self, feed: list[TokenInputs], on_output: OnOutput, train: bool, temperature: float) -> None:
        if self._pipeline is not None:
            self._pipeline.run(feed, self._filling(), on_output, train=train, temperature=temperature)
            return
        for index in range(self.mesh.largest(len(feed))):
            real = index < len(feed)
            with torch.set_grad_enabled(train):
                found = self._forward(feed[index] if real else self._filling(), temperature)
                loss = on_output(index, found) if real else found.sum() * 0.0
                if train:
                    loss.backward()

    def _forward(self, inputs: TokenInputs, temperature: float) -> Tensor:
        """Log-probs and entropy, [B, T, 2], from the only program of an unpipelined layout."""
        program: Any = self._programs[0]
        if isinstance(program, WholeModel):
            with self._autocast():
                return cast("Tensor", program(inputs, temperature))
        program.temperature, program.feed = temperature, [inputs]
        first = torch.zeros(1, dtype=torch.int64)
        return cast("Tensor", program(inputs.input_ids, first))

    def _inputs(self, mb: MicroBatch) -> TokenInputs:
        make = TokenInputs.packed if self.packs else TokenInputs.padded
        return make(mb, self.mesh.device, self.spec.c * self.spec.t)

    def _filling(self) -> TokenInputs:
        zeros = torch.zeros(1, 2, dtype=torch.int64)
        return self._inputs({"input_ids": zeros, "labels": zeros, "loss_mask": zeros.bool()})

    @contextmanager
    def _session(self) -> Iterator[None]:
        if not self._programs:
            raise RuntimeError("call strategy.parallelize in configure_model before computing")
        # A caller's inference_mode would leave tensors that later training could not use.
        with torch.inference_mode(False):
            yield
        if self._uses_fsdp:
            parallel.reshard(self._programs)

    def _autocast(self) -> torch.autocast:
        enabled = self.precision == "bf16" and not self._uses_fsdp
        return torch.autocast(self.mesh.device.type, torch.bfloat16, enabled=enabled)

    def _to_device(self, mb: MicroBatch) -> MicroBatch:
        return {key: value.to(self.mesh.device, non_blocking=True) for key, value in mb.items()}

    # -- gradients and weights --------------------------------------------------------------------------------------

    def clip_grad_norm(self, max_norm: float | None) -> Tensor:
        """Norm of the whole model's gradient (float32 scalar, equal everywhere), after scaling it to ``max_norm``.

        With ``max_norm`` None or infinite the norm is only measured. Collective.
        """
        skip = self.model.lm_head.weight if self.holds_tied_copy else None
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        grads = [parameter.grad for parameter in parameters if parameter is not skip and parameter.grad is not None]
        norm = total_norm(grads, self.mesh.group("pp"), self.mesh.device)
        if max_norm is not None:
            scale(parameters, norm, max_norm)
        return norm

    def base_norm(self) -> float:
        """Euclidean norm of the weights that are not trained, tied copies counted once. Collective."""
        skip = self.model.lm_head.weight if self.holds_tied_copy else None
        frozen = [p.detach() for p in self.model.parameters() if not p.requires_grad and p is not skip]
        return float(total_norm(frozen, self.mesh.group("pp"), self.mesh.device))

    @property
    def holds_tied_copy(self) -> bool:
        """True on the last pipeline stage of a tied model: its head repeats the first stage's embedding."""
        return self._tied and not hasattr(self.model.model, "embed_tokens")

    def iter_full_weights(self, bucket_bytes: int = 1 << 30) -> Iterator[list[tuple[str, Tensor]]]:
        """Full weights by Hugging Face name, bucket by bucket, on global rank 0; empty lists elsewhere. Collective.

        A tied ``lm_head.weight`` is left out; adapters are merged.
        """
        return self._export.iter_full_weights(self.model, bucket_bytes)

    def save_adapter(self, path: str | Path) -> None:
        """Write the adapters as a folder that PEFT and vLLM read. Collective. Raises RuntimeError without LoRA."""
        self._export.save_adapter(self.model, path)

    @property
    def _export(self) -> Exporter:
        assert self._exporter is not None, "call parallelize first"
        return self._exporter

    def base_only(self) -> AbstractContextManager[None]:
        """Inside, adapters do not count: the policy is the one training started from."""
        return adapters_off(self.model)

    def save_pretrained(self, path: str | Path, tokenizer: Any = None) -> None:
        """Write a Hugging Face folder that ``from_pretrained`` reads. Collective.

        Adapters are merged into it, and lie by themselves in its subfolder ``adapter``.
        """
        self._export.save_pretrained(self.model, path, tokenizer)


def casts_parameters(precision: Precision, device: torch.device) -> bool:
    """Whether bf16 means bfloat16 parameters in every computation, in any layout: on GPUs, by FSDP2.

    What autocast does instead leaves norms, and with them queries, keys and the residual stream, in float32: not how
    the engine computes, slower, and nothing for the variable-length kernel, which takes half precision. On a CPU one
    process computes under autocast.
    """
    return precision == "bf16" and device.type == "cuda"


def _owner(name: str, layer_owner: dict[str, int], ranks: int) -> int:
    if name.startswith("model.layers."):
        return layer_owner[name.split(".")[2]]
    return 0 if name.startswith("model.embed_tokens.") else ranks - 1
