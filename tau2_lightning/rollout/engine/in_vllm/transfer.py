"""Extension of vLLM's workers: a weight-transfer backend that reads safetensors files, and repairs for CPU.

vLLM imports this module through ``--worker-extension-cls``. The import registers two backends: ``shm`` reads files from
any folder that both processes see, normally /dev/shm; ``cuda`` does so too, and takes CUDA IPC handles and NCCL
broadcasts. ``--weight-transfer-config '{"backend": "shm"}'`` chooses one.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from .copied_weights import copies_are_loaded
from .stacks import answer_with_stacks

BACKEND = "shm"
CUDA_BACKEND = "cuda"
PR_SET_PDEATHSIG = 1


def repair_tied_head(model: torch.nn.Module) -> bool:
    """Rebuild the packed copy of a tied ``lm_head`` from the embedding; returns whether there was one to rebuild.

    On CPU, vLLM packs every linear weight for oneDNN and frees the original. A tied head is a module of its own with
    its own packed copy, which layerwise reloading skips. Without the repair, the engine would compute logits with the
    old head on the new body, and answer 200.
    """
    from vllm.platforms import current_platform

    body = getattr(model, "model", None)
    head, embedding = getattr(model, "lm_head", None), getattr(body, "embed_tokens", None)
    head, embedding = getattr(head, "base_layer", head), getattr(embedding, "base_layer", embedding)
    tied = bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))
    if not (tied and current_platform.is_cpu()) or head is None or embedding is None or head is embedding:
        return False
    head.weight = embedding.weight
    head.quant_method.process_weights_after_loading(head)
    return True


@dataclass
class FilesInit(WeightTransferInitInfo):
    """Files need no rendezvous."""


@dataclass
class FilesUpdate(WeightTransferUpdateInfo):
    """One bucket: the path of a safetensors file holding full (unsharded) tensors under Hugging Face names."""

    path: str


class FilesEngine(WeightTransferEngine[FilesInit, FilesUpdate]):
    """Loads buckets of full tensors from files; vLLM's own loaders shard and fuse them for this worker."""

    init_info_cls = FilesInit
    update_info_cls = FilesUpdate

    def init_transfer_engine(self, init_info: FilesInit) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FilesUpdate) -> None:
        with copies_are_loaded(self.model):
            self.model.load_weights(tensors_in(update_info.path))

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        if WorkerExtension.repairs_tied_head:
            repair_tied_head(self.model)

    def shutdown(self) -> None:
        """Nothing to release."""


def tensors_in(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a safetensors file, one at a time."""
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118  # not a dict
            yield name, file.get_tensor(name)


class RewindableGenerator(torch.Generator):
    """A CPU generator that can undo a draw, for requests with a seed.

    vLLM samples at every step of a prompt that is prefilled in chunks, and undoes the draw by moving the generator's
    offset. CPU generators have no offset, so a single long prompt with a seed ends the whole server. Before the first
    token of a request, undoing means starting again: its tokens then depend on its seed alone, not on the chunks.
    """

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> torch.Generator:
        return self.manual_seed(self.initial_seed())


class WorkerExtension:
    """Mixed into vLLM's worker class. Its methods are reachable by name through ``/collective_rpc``."""

    repairs_tied_head = True

    def set_tied_head_repair(self, enabled: bool) -> None:
        """Switch the repair off, so that a test can show that the parity guard notices, and on again."""
        WorkerExtension.repairs_tied_head = enabled


def _die_with_parent() -> None:
    # Otherwise an engine core whose API server was killed would keep running, with gigabytes of weights.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _make_generators_rewindable() -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        torch.Generator = RewindableGenerator  # type: ignore[misc]


def _repair_experts() -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from .expert_weights import repack_reloaded_experts

        repack_reloaded_experts()


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, FilesEngine)
    WeightTransferEngineFactory.register_engine(CUDA_BACKEND, f"{__package__}.transfer_cuda", "CudaEngine")

if multiprocessing.parent_process() is not None:  # in a process that vLLM started; not on any other import
    _die_with_parent()
    answer_with_stacks()
    _make_generators_rewindable()
    _repair_experts()
