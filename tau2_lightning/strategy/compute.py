"""The trainer's numerics without Lightning: a causal LM under a (pp, dp, cp, tp) layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.microbatch import MicroBatch, ModelRows
from tau2_lightning.policy.written import PolicyFiles

from .activation_offloading import ActivationsOnHost
from .assembly import Assembly, Options, assemble
from .fitting import can_share
from .gradients import scale, total_norm
from .inputs import TokenInputs, loss_view
from .kept_prefix import KeptPrefix, Role, Trunks, keep
from .lora import adapters_off
from .memory import weight_of_kept
from .mesh import Mesh, is_maximum
from .model import WholeModel
from .outputs import ForwardOutput, LossFn, TokenOutputs
from .parallelize import reshard, uses_fsdp
from .passes import depth, one_by_one, together
from .pipeline import OnOutput, renumbered
from .replay import check_recorded
from .tree_attention import can_branch
from .weights import BUCKET_BYTES


class ArchonCompute:
    """Owns this process's part of the parallel model and computes with it. `ArchonStrategy` brings it into Lightning.

    ``replicate`` is the number of copies of the parameters over the d x c ranks: 1 shards them over all ranks, d x c
    keeps a copy on each, numbers between are hybrid. Raises ConfigError for what cannot run.
    """

    def __init__(self, spec: ParallelSpec, options: Options | None = None, *, replicate: int = 1) -> None:
        if replicate < 1 or spec.d * spec.c % replicate:
            problem = f"does not divide the {spec.d * spec.c} ranks that d and c make"
            raise ConfigError([Violation("actor.fsdp.replicate", replicate, problem, "Use a divisor; 1 shards all")])
        self.spec, self.options, self.replicate = spec, options or Options(), replicate
        self.mesh = Mesh(spec, torch.device("cpu"))
        # Sees the outputs of every micro-batch that is trained on, with the micro-batch as it was given.
        self.watch: Callable[[TokenOutputs, MicroBatch], None] | None = None
        self._assembly: Assembly | None = None

    def connect(self, device: torch.device) -> None:
        """Lay out the mesh over the default process group (none is needed for one process). Collective."""
        self.mesh = Mesh.build(self.spec, device, self.replicate, alone=self._uses_fsdp(device))

    def parallelize(self, source: str | Path | nn.Module) -> nn.Module:
        """Bring a causal LM into the layout and return this rank's part, its parameters under Hugging Face names.

        The returned module is for optimizers and checkpoints; it is not called. Raises ConfigError when the model
        does not fit the layout.
        """
        self._assembly = assemble(source, self.mesh, self.options)
        return cast("nn.Module", self.model)

    @property
    def ready(self) -> bool:
        """Whether ``parallelize`` has run."""
        return self._assembly is not None

    @property
    def assembly(self) -> Assembly:
        """The result of ``parallelize``. Raises RuntimeError before it."""
        if self._assembly is None:
            raise RuntimeError("call strategy.parallelize in configure_model before computing")
        return self._assembly

    @property
    def model(self) -> Any:
        """This rank's part of the model."""
        return self.assembly.model

    @property
    def packs(self) -> bool:
        """Whether rows are computed without their padding: asked for, and this model's attention allows it."""
        return self.ready and self.assembly.packs

    @property
    def shares(self) -> bool:
        """Whether tokens that packed rows share are computed once: asked for, and attention on this device can."""
        asked = self.packs and self.options.tree_training
        return asked and can_share(self.model.config) and can_branch(self.mesh.device, self.model.config)

    @cached_property
    def trunk_weight(self) -> float:
        """Memory that a token of a trunk takes while micro-batches continue it, in tokens of a micro-batch."""
        o = self.options
        return weight_of_kept(self.model.config, o.precision, o.activation_checkpointing) if self.shares else 0.0

    # -- computing --------------------------------------------------------------------------------------------------

    def forward_backward(
        self, microbatches: Sequence[MicroBatch], loss_fn: LossFn, *, train: bool = True, temperature: float = 1.0
    ) -> ForwardOutput:
        """Run every micro-batch; with ``train`` accumulate gradients, summed over data ranks. Collective.

        ``loss_fn(outputs, microbatch) -> (loss, metrics)`` divides by global counts itself. Data ranks may bring
        different numbers and shapes of micro-batches; the ranks of one data rank bring the same. It takes no optimizer
        step and zeroes no gradients.
        """
        sums: dict[str, Tensor] = {"loss": torch.zeros((), device=self.mesh.device)}

        def on_output(index: int, found: Tensor) -> Tensor:
            outputs = feed[index].outputs(found)
            if train and self.watch is not None:
                self.watch(outputs, microbatches[index])
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
            feed, kept = self._feed(microbatches)
            batches = [loss_view(mb, self.mesh.device) for mb in microbatches]
            for partial in self.assembly.partial if train else ():
                partial.set_aside()
            self._run_all(microbatches, feed, kept, on_output, train, temperature)
            for partial in self.assembly.partial if train else ():
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
            feed, kept = self._feed(microbatches)
            self._run_all(microbatches, feed, kept, on_output, False, temperature)
        group = self.mesh.group("pp")
        if group is None or not feed:
            return [found[index] for index in range(len(feed))]
        sizes = [mb["loss_mask"].shape for mb in microbatches]
        flat = torch.zeros(sum(size.numel() for size in sizes), 2, device=self.mesh.device)
        if found:
            every = [torch.stack([found[i].logprobs, found[i].entropy], -1).flatten(0, 1) for i in range(len(feed))]
            flat = torch.cat(every)
        dist.broadcast(flat, group=group, group_src=self.spec.p - 1)
        parts = torch.split(flat, [size.numel() for size in sizes])
        return [
            TokenOutputs(part[:, 0].reshape(size), part[:, 1].reshape(size))
            for part, size in zip(parts, sizes, strict=True)
        ]

    def _run_all(
        self, microbatches: Sequence[MicroBatch], feed: list[TokenInputs], kept: Trunks, on_output: OnOutput,
        train: bool, temperature: float,
    ) -> None:  # fmt: skip
        """Run ``feed``, each after the trunks it continues; with gradients these run once more after it.

        Data ranks must make the same calls, and a pipeline wants many micro-batches: there all trunks stay to the end.
        """
        trunks = [mb["model"].trunk for mb in microbatches]
        alone = self.spec.d * self.spec.p == 1
        for kind, some, numbers in one_by_one(trunks) if alone else together(trunks, self.mesh.largest(depth(trunks))):
            if kind == "rows":
                self._run([feed[number] for number in numbers], renumbered(on_output, numbers), train, temperature)
                continue
            if kind == "record" or train:
                inputs = [self._inputs(ModelRows.of_trunk(t), kept.get(t.parent), kept[t], kind) for t in some]
                self._run(inputs, lambda _, found: found.sum() * 0.0, kind == "return", temperature)
            for trunk in some if kind == "return" else ():
                kept[trunk].forget()

    def _run(self, feed: list[TokenInputs], on_output: OnOutput, train: bool, temperature: float) -> None:
        with ActivationsOnHost() if train and self.options.activation_offloading else nullcontext():
            self._compute(feed, on_output, train, temperature)

    def _compute(self, feed: list[TokenInputs], on_output: OnOutput, train: bool, temperature: float) -> None:
        if self.assembly.pipeline is not None:
            self.assembly.pipeline.run(feed, self._filling(), on_output, train=train, temperature=temperature)
            return
        for index in range(self.mesh.largest(len(feed))):
            real = index < len(feed)
            with torch.set_grad_enabled(train):
                found = self._forward(feed[index] if real else self._filling(), temperature)
                loss = on_output(index, found) if real else found.sum() * 0.0
                if train:
                    torch.autograd.backward(loss)

    def _forward(self, inputs: TokenInputs, temperature: float) -> Tensor:
        """Log-probs and entropy of the targets, from the only program of an unpipelined layout."""
        program: Any = self.assembly.programs[0]
        if isinstance(program, WholeModel):
            with torch.autocast(self.mesh.device.type, torch.bfloat16, enabled=self.options.autocasts(self.mesh)):
                return cast("Tensor", program(inputs, temperature))
        program.temperature, program.feed = temperature, [inputs]
        first = torch.zeros(1, dtype=torch.int64)
        try:
            return cast("Tensor", program(inputs.input_ids, first))
        finally:
            program.feed = ()  # it would keep a trunk's keys, values and gradients until the next step

    def _feed(self, microbatches: Sequence[MicroBatch]) -> tuple[list[TokenInputs], Trunks]:
        """The micro-batches on the device, and the trunks that they continue."""
        rows = [mb["model"] for mb in microbatches]
        kept = keep(each.trunk for each in rows)
        return [self._inputs(each, kept.get(each.trunk)) for each in rows], kept

    def _inputs(
        self, rows: ModelRows, prefix: KeptPrefix | None = None, own: KeptPrefix | None = None, role: Role = "record"
    ) -> TokenInputs:
        if rows.nodes is not None and not self.packs:
            raise ValueError("the rows are packed, but this model computes padded rows: collate with packed=False")
        if rows.routed is not None and self.assembly.replays is not None:
            check_recorded(rows.routed, self.assembly.replays, self.model.config)
        multiple, slices = self.spec.c * self.spec.t, self.spec.c
        return TokenInputs.of(rows, self.mesh.device, multiple, slices, prefix=prefix, own=own, role=role)

    def _filling(self) -> TokenInputs:
        zeros = torch.zeros(1, 2, dtype=torch.int64)
        return self._inputs(ModelRows.of(zeros, zeros, zeros.bool(), [2], packed=False))

    @contextmanager
    def _session(self) -> Iterator[None]:
        programs = self.assembly.programs
        # A caller's inference_mode would leave tensors that later training could not use.
        with torch.inference_mode(False):
            yield
        if self._uses_fsdp(self.mesh.device):
            reshard(programs)

    def _uses_fsdp(self, device: torch.device) -> bool:
        return uses_fsdp(self.spec, self.options.precision, device)

    # -- gradients and weights --------------------------------------------------------------------------------------

    def clip_grad_norm(self, max_norm: float | None) -> Tensor:
        """Norm of the whole model's gradient (float32 scalar, equal everywhere), after scaling it to ``max_norm``.

        With ``max_norm`` None or infinite the norm is only measured. Collective.
        """
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        grads = [p.grad for p in parameters if p is not self.tied_copy and p.grad is not None]
        norm = total_norm(grads, self.mesh.group("pp"), self.mesh.device)
        if max_norm is not None:
            scale(parameters, norm, max_norm)
        return norm

    def base_norm(self) -> float:
        """Euclidean norm of the weights that are not trained, tied copies counted once. Collective."""
        frozen = [p.detach() for p in self.model.parameters() if not p.requires_grad and p is not self.tied_copy]
        return float(total_norm(frozen, self.mesh.group("pp"), self.mesh.device))

    @property
    def tied_copy(self) -> nn.Parameter | None:
        """On the last pipeline stage of a tied model the head's weight, which repeats the first stage's embedding."""
        return self.assembly.tied_copy

    def iter_full_weights(self, bucket_bytes: int = BUCKET_BYTES) -> Iterator[list[tuple[str, Tensor]]]:
        """Full weights by Hugging Face name (without a tied head's, adapters merged), bucket by bucket, on global rank
        0; empty lists elsewhere. Collective."""
        return self.assembly.exporter.iter_full_weights(self.model, bucket_bytes)

    def save_adapter(self, path: str | Path) -> None:
        """Write the adapters as a folder that PEFT and vLLM read. Collective. Raises RuntimeError without LoRA."""
        self.assembly.exporter.save_adapter(self.model, path)

    def base_only(self) -> AbstractContextManager[None]:
        """A context in which adapters are off: the policy is the one that training started from."""
        return adapters_off(self.model)

    def save_pretrained(self, path: str | Path, tokenizer: Any = None) -> None:
        """Write a Hugging Face folder that ``from_pretrained`` reads. Collective.

        Adapters are merged into it, and written by themselves to its subfolder ``adapter``.
        """
        self.assembly.exporter.save_pretrained(self.model, path, tokenizer)

    def snapshot(self) -> PolicyFiles:
        """A copy of the policy in memory, in the dtype in which it is stored: what `save_pretrained` would write now.

        Rank 0's may be written in another thread while training goes on; the others have no tensors. Collective.
        """
        return self.assembly.exporter.snapshot(self.model)
