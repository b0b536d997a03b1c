"""Lets SGLang run on a CPU without its compiled kernels, for which no package exists.

SGLang then computes with plain PyTorch. Where the real parts are installed, nothing is replaced.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from importlib import metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

# Names that SGLang imports with SGLANG_USE_CPU_ENGINE=1. They serve speculative decoding and moves of cache pages.
UNUSED_KERNELS = (
    "copy_all_layer_kv_cache_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "rotate_input_ids_cpu",
    "assign_draft_cache_locs_contiguous_cpu",
    "assign_extend_cache_locs_cpu",
    "build_tree_kernel_efficient_cpu",
    "verify_tree_greedy_cpu",
)
FACTORIES = ("tensor", "zeros", "empty", "arange", "full", "ones")

_declared: list[Any] = []  # a library's operators end with the object


def install(*, adapters: bool) -> None:
    """Replace what is missing in this process. ``adapters``: SGLang serves LoRA adapters."""
    if importlib.util.find_spec("sgl_kernel") is None:
        sys.modules["sgl_kernel"] = kernels()
    declare_vision_operators()
    if adapters:
        sys.meta_path.insert(0, Unpinned())


def kernels() -> types.ModuleType:
    """A module ``sgl_kernel`` whose functions raise NotImplementedError, but for one that PyTorch can do as well."""
    module = types.ModuleType("sgl_kernel")
    module.__spec__ = ModuleSpec("sgl_kernel", None, is_package=True)
    module.__path__ = []
    for name in UNUSED_KERNELS:
        setattr(module, name, _absent(name))
    module.assign_req_to_token_pool_cpu = assign_req_to_token_pool  # type: ignore[attr-defined]
    return module


def assign_req_to_token_pool(rows: Any, table: Any, start: Any, end: Any, values: Any, width: int) -> None:
    """Write each request's slots ``values`` to columns ``start`` to ``end`` of its row of ``table``."""
    done = 0
    for row, first, last in zip(rows.tolist(), start.tolist(), end.tolist(), strict=True):
        table[row, first:last] = values[done : done + last - first].to(table.dtype)
        done += last - first


def _absent(name: str) -> Callable[..., None]:
    def call(*_: Any, **__: Any) -> None:
        raise NotImplementedError(f"sgl_kernel.{name}: SGLang's kernels for CPUs are not installed")

    return call


def declare_vision_operators() -> None:
    """SGLang imports torchvision, whose usual wheel is for CUDA: beside a CPU torch its library cannot load, and its
    Python part misses these operators at import."""
    import torch
    from torch import library

    if torch.version.cuda is not None or "cpu" in metadata.version("torchvision"):
        return
    vision = library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        vision.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(vision)


class Unpinned(MetaPathFinder):
    """SGLang's code for adapters asks for pinned memory, which needs an accelerator. The wish is dropped from the
    import of that code on: earlier, other modules compile functions that call the originals."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Never finds anything; sees which module is imported."""
        if fullname != "sglang.srt.lora":
            return
        sys.meta_path.remove(self)
        import torch

        torch.Tensor.pin_memory = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
        for name in FACTORIES:
            setattr(torch, name, _unpinned(getattr(torch, name)))


def _unpinned(factory: Callable[..., Any]) -> Callable[..., Any]:
    def make(*args: Any, pin_memory: bool = False, **options: Any) -> Any:
        return factory(*args, **options)

    return make
