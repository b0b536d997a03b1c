"""`ArchonStrategy`: `ArchonCompute` as a Lightning strategy. Archon is AReaL's name of its trainer backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.strategies.parallel import ParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.policy.written import PolicyFiles

from . import checkpoint as files
from .assembly import Options
from .compute import ArchonCompute
from .finite import check_finite
from .from_rank_zero import FromRankZero
from .in_trainer import check_module, check_trainer
from .launcher import RankLauncher
from .layers import ActivationCheckpointing
from .lora import BaseDtype, LoRASettings
from .mesh import Mesh
from .outputs import ForwardOutput, LossFn, TokenOutputs
from .parallelize import Precision
from .saving import SECONDS, CheckpointSaver
from .training_spec import training_spec
from .weights import BUCKET_BYTES, persistent_tensors
from .write_faults import check_room, local_bytes

TIMEOUT = timedelta(minutes=30)


class ArchonStrategy(ModelParallelStrategy):
    """Data, pipeline, tensor, context and expert parallel training for manual optimisation.

    ``allocation`` is a spec (``d2p2t1``) or a whole allocation (``vllm:d1+archon:d2p2t1``), of which the trainer's
    part is used; ``Trainer(devices=...)`` times nodes must equal its number of ranks. The LightningModule calls
    ``parallelize`` in ``configure_model``, and ``forward_backward`` and ``clip_grad_norm`` in ``training_step``. One
    process needs no process group and no sharding. The other arguments are those of `Options`, `CheckpointSaver` and
    `ArchonCompute`. Raises ConfigError for what cannot run.
    """

    strategy_name = "archon"

    def __init__(
        self,
        allocation: str | ParallelSpec,
        *,
        schedule: str = "1F1B",
        precision: Precision = "fp32",
        activation_checkpointing: ActivationCheckpointing = "none",
        compile_blocks: bool = False,
        lora: LoRASettings | None = None,
        base_dtype: BaseDtype = "float32",
        offload_params: bool = False,
        activation_offloading: bool = False,
        replicate: int = 1,
        packing: bool = True,
        tree_training: bool = True,
        handwritten_elementwise: bool = False,
        longest: int | None = None,
        async_save: bool = False,
        save_timeout: float = SECONDS,
        timeout: timedelta = TIMEOUT,
        process_group_backend: str | None = None,
    ) -> None:
        spec = allocation if isinstance(allocation, ParallelSpec) else training_spec(allocation)
        super().__init__(spec.d, spec.t, process_group_backend=process_group_backend, timeout=timeout)
        self.spec = spec
        self.saver = CheckpointSaver(background=async_save, seconds=save_timeout)
        self.compute = ArchonCompute(
            spec,
            Options(
                schedule=schedule,
                precision=precision,
                activation_checkpointing=activation_checkpointing,
                compile_blocks=compile_blocks,
                lora=lora,
                base_dtype=base_dtype,
                offload_params=offload_params,
                activation_offloading=activation_offloading,
                packing=packing,
                tree_training=tree_training,
                handwritten_elementwise=handwritten_elementwise,
                longest=longest,
            ),
            replicate=replicate,
        )

    # -- processes --------------------------------------------------------------------------------------------------

    def _configure_launcher(self) -> None:
        check_trainer(self.spec, self.num_processes, self.num_nodes, self.precision_plugin)
        if self.spec.world > 1:
            super()._configure_launcher()
            if isinstance(self._launcher, _SubprocessScriptLauncher):
                assert self.cluster_environment is not None
                self._launcher = RankLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        assert self.lightning_module is not None
        if self.spec.world == 1:
            ParallelStrategy.setup_environment(self)
            self.set_world_ranks()
        else:
            self._setup_distributed()
        self.compute.connect(self.root_device)
        self._device_mesh = self.mesh.device_mesh
        self.lightning_module._device_mesh = self._device_mesh

    def setup(self, trainer: Any) -> None:
        check_module(trainer.lightning_module, parallelized=self.compute.ready)
        super().setup(trainer)

    @property
    def mesh(self) -> Mesh:
        return self.compute.mesh

    @property
    def data_rank(self) -> int:
        """Index of the share of the data that this process works on."""
        return self.mesh.coordinate("dp")

    @property
    def data_world(self) -> int:
        """Number of shares the data is split into."""
        return self.spec.d

    @property
    def packs(self) -> bool:
        """Whether rows are computed without their padding, so that a micro-batch's budget counts real tokens."""
        return self.compute.packs

    @property
    def shares(self) -> bool:
        """Whether tokens that rows share are computed once, so that a micro-batch's budget counts them once."""
        return self.compute.shares

    @property
    def trunk_weight(self) -> float:
        """What a token of a trunk counts in a micro-batch's budget, in tokens: its memory."""
        return self.compute.trunk_weight

    def sum_over_data(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over the data ranks, in place. Collective."""
        return self.mesh.sum_over_data(values)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.data_world, "rank": self.data_rank}

    def broadcast_bytes(self, data: bytes | None, src: int = 0) -> bytes:
        """Bytes from global rank ``src`` on every process, as a tensor. Collective."""
        return self.mesh.broadcast_bytes(data, src)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Reduce over data ranks (the other ranks of a data rank hold the same value)."""
        if self.spec.d == 1 and group is None:
            return tensor
        return super().reduce(tensor, group if group is not None else self.mesh.group("dp"), reduce_op)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether ``decision`` is true on all ranks (with ``all=False``: on any). Every rank votes."""
        if self.spec.world == 1:
            return decision
        votes = torch.tensor([int(decision)], device=self.root_device)
        dist.all_reduce(votes)
        return int(votes) == self.world_size if all else int(votes) > 0

    # -- computing --------------------------------------------------------------------------------------------------

    def parallelize(self, model_source: str | Path | nn.Module) -> nn.Module:
        """See `ArchonCompute.parallelize`."""
        return self.compute.parallelize(model_source)

    def forward_backward(
        self, microbatches: Sequence[MicroBatch], loss_fn: LossFn, *, train: bool = True, temperature: float = 1.0
    ) -> ForwardOutput:
        """See `ArchonCompute.forward_backward`."""
        return self.compute.forward_backward(microbatches, loss_fn, train=train, temperature=temperature)

    def token_outputs(self, microbatches: Sequence[MicroBatch], *, temperature: float = 1.0) -> list[TokenOutputs]:
        """See `ArchonCompute.token_outputs`."""
        return self.compute.token_outputs(microbatches, temperature=temperature)

    def clip_grad_norm(self, max_norm: float | None) -> Tensor:
        """See `ArchonCompute.clip_grad_norm`."""
        return self.compute.clip_grad_norm(max_norm)

    def iter_full_weights(self, bucket_bytes: int = BUCKET_BYTES) -> Iterator[list[tuple[str, Tensor]]]:
        """See `ArchonCompute.iter_full_weights`. Raises TrainingDiverged at once when a weight is not finite."""
        self._check_finite("bringing the weights to the engines")
        return self.compute.iter_full_weights(bucket_bytes)

    @property
    def lora(self) -> LoRASettings | None:
        """The adapters' settings, when only adapters are trained."""
        return self.compute.options.lora

    def base_only(self) -> AbstractContextManager[None]:
        """See `ArchonCompute.base_only`."""
        return self.compute.base_only()

    def save_adapter(self, path: str | Path) -> None:
        """See `ArchonCompute.save_adapter`. Raises TrainingDiverged when a weight is not finite."""
        self._check_finite(f"writing the adapter {path}")
        self.compute.save_adapter(path)

    def save_pretrained(self, path: str | Path, tokenizer: Any = None) -> None:
        """See `ArchonCompute.save_pretrained`. Raises TrainingDiverged when a weight is not finite."""
        self._check_finite(f"writing the policy {path}")
        self.compute.save_pretrained(path, tokenizer)

    def snapshot(self) -> PolicyFiles:
        """See `ArchonCompute.snapshot`. Raises TrainingDiverged when a weight is not finite."""
        self._check_finite("a snapshot of the policy")
        return self.compute.snapshot()

    def _check_finite(self, doing: str) -> None:
        check_finite(((n, p) for n, p in self.compute.model.named_parameters() if p.requires_grad), doing)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return dict(persistent_tensors(self.lightning_module))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return {}  # written shard by shard in save_checkpoint

    def _tied_alias(self) -> dict[str, str]:
        """On the last stage of a tied model: the head's name here -> the embedding's, under which it is stored."""
        copy = self.compute.tied_copy
        if copy is None:
            return {}
        head, embedding = self.compute.model.family.parts.tied
        names = [name for name, tensor in self.lightning_module_state_dict().items() if tensor is copy]
        return {name: name.removesuffix(head) + embedding for name in names}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("ArchonStrategy writes folders itself and takes no storage_options")
        tensors = checkpoint.pop("state_dict")
        optimizers = self.optimizers if checkpoint.pop("optimizer_states", None) else []
        names = {id(tensor): name for name, tensor in tensors.items()}
        model = files.fingerprint(self.compute.model.config)
        meta = {**checkpoint, "model": model, "allocation": str(self.spec), "rng": files.rng_state()}
        path = self._path(filepath)
        if self.lora is not None:  # without the base model; its norm is kept to recognise it
            tensors = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
            meta |= {"lora": self.lora.to_dict(), "base_norm": self.compute.base_norm()}
        states = [state for optimizer in optimizers for state in optimizer.state.values()]
        slots = [("the optimizer's state", value) for state in states for value in state.values()]
        check_finite([*tensors.items(), *((n, v) for n, v in slots if isinstance(v, Tensor))], f"writing {path}")
        # Ranks hold shards of about the same size; every rank learns whether there is room.
        needed = local_bytes(tensors.values(), states) * self.spec.world
        FromRankZero(self).json(lambda: check_room(path, needed))
        self.saver.save(path, tensors, optimizers, names, meta, skip=frozenset(self._tied_alias()))

    def remove_checkpoint(self, filepath: Any) -> None:
        if self.is_global_zero:
            self.saver.remove(Path(filepath))

    def teardown(self) -> None:
        self.saver.wait()
        super().teardown()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        tensors = self.lightning_module_state_dict()
        names = {id(tensor): name for name, tensor in tensors.items()}
        model = files.fingerprint(self.compute.model.config)
        self.saver.wait()
        path = self._path(checkpoint_path)  # a broadcast: rank 0 has completed what it was writing
        if self.lora is not None:
            tensors = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
        files.check_adapters(path, self.lora.to_dict() if self.lora else None, self.compute.base_norm)
        meta = files.load(path, tensors, self.optimizers, names, model, alias=self._tied_alias())
        if self.optimizers and "rng" in meta:  # rank 0's state: the layout may have changed
            files.restore_rng(meta["rng"])
        # Lightning restores these entries itself, so they must be there; ours are restored already.
        return {**meta, "state_dict": {}, "optimizer_states": [{} for _ in meta.get("optimizers", [])]}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Does nothing: load_checkpoint has filled the parameters."""

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Does nothing: load_checkpoint has filled the optimizers."""

    def _path(self, path: Any) -> Path:
        return Path(self.broadcast_bytes(str(path).encode()).decode())
