"""Extension of vLLM's workers on CUDA: one weight-transfer backend that takes files, CUDA IPC handles and broadcasts.

The trainer chooses one of them for each update. Files always work, so a restarted engine can load a snapshot, however
the previous weights arrived. Written against vLLM 0.32's source; needs a GPU to run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

from .copied_weights import copies_are_loaded
from .cuda_handles import open_shared
from .transfer import tensors_in


@dataclass
class CudaUpdate(WeightTransferUpdateInfo):
    """One bucket: a safetensors ``path``, or IPC ``handles``, or (names, dtypes, shapes) of an NCCL broadcast."""

    path: str | None = None
    handles: list[dict[str, Any]] | None = None
    names: list[str] = field(default_factory=list)
    dtype_names: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)


class CudaEngine(NCCLWeightTransferEngine):
    """vLLM's NCCL engine, which also reads files and maps tensors of a trainer on the same GPU."""

    update_info_cls = CudaUpdate

    def receive_weights(self, update_info: CudaUpdate) -> None:
        with copies_are_loaded(self.model):
            if update_info.path is not None:
                self.model.load_weights(tensors_in(update_info.path))
            elif update_info.handles is not None:
                self.model.load_weights(open_shared(update_info.handles, self.device.index))
                torch.cuda.synchronize(self.device)  # the trainer may overwrite its tensors once this returns
            else:
                names, dtypes, shapes = update_info.names, update_info.dtype_names, update_info.shapes
                super().receive_weights(NCCLWeightTransferUpdateInfo(names, dtypes, shapes))
